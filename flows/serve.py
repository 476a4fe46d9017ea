"""Serve the deployments of prefect.yaml: starts server, work pool, deployments and worker.

If PREFECT_API_URL names a server, that server is used. Otherwise one starts on this machine and
ends with this command.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML

from flows import report, server
from flows.processes import end_cleanly, let_end
from flows.server import PREFECT
from flows.workspace import WorkspaceBusyError, sole_run, stage_environment
from salf.children import end_with
from salf.errors import BAD_INPUT, UserError

POLL_SECONDS = 0.5
RESTART_SECONDS = 5.0
STOP_SECONDS = 60.0
IDLE_SECONDS = 10.0  # a worker that has run something never ends when it is asked to (Prefect 3.8.8)
_EXAMPLES = """examples:
  python -m flows.serve                     a server on 127.0.0.1:4200, ended by Ctrl-C
  python -m flows.serve --port 4300
  PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.serve
                                            deployments and worker for a server that is running
"""


def serve(project: Path, host: str, port: int) -> None:
    """Deploy everything and work for it until this process is stopped."""
    environment = stage_environment(os.environ)
    url, own, worker = server.configured(), None, None
    if url is None:
        url, own = server.start(environment, host, port)
    environment["PREFECT_API_URL"] = url
    ends_with_us = partial(end_with, os.getpid())
    apart: Any = {"stdin": subprocess.DEVNULL, "start_new_session": True, "preexec_fn": ends_with_us}
    try:
        with temporary_settings({PREFECT_API_URL: url}):
            pool = _deploy(project, environment)
            while True:
                _clear_away(project)
                command = [*PREFECT, "worker", "start", "--pool", pool, "--type", "process"]
                worker = subprocess.Popen(command, env=environment, **apart)
                print(f"serving the deployments of prefect.yaml; see {url.removesuffix('/api')}", flush=True)
                while worker.poll() is None:
                    if own is not None and own.poll() is not None:
                        raise UserError("the server has ended")
                    time.sleep(POLL_SECONDS)
                print(f"the worker ended with {worker.returncode}; another one starts", file=sys.stderr, flush=True)
                time.sleep(RESTART_SECONDS)
    finally:
        _stop(worker)
        if own is not None:
            let_end(own)


def _stop(process: "subprocess.Popen[bytes] | None") -> None:
    """End a process; it may take its time while its children are active, but not without any."""
    if process is None or process.poll() is not None:
        return
    process.terminate()  # a worker then stops its runs, and they their stages
    began = busy = time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            busy = now if psutil.Process(process.pid).children() else busy
        if now - busy > IDLE_SECONDS or now - began > STOP_SECONDS:
            process.kill()
            process.wait()
        time.sleep(0.1)


def _deploy(project: Path, environment: Mapping[str, str]) -> str:
    deployments = YAML(typ="safe", pure=True).load((project / "prefect.yaml").read_text(encoding="utf-8"))
    pool = str(deployments["definitions"]["work_pool"]["name"])
    # ``prefect work-pool create`` would fetch a list of types from the web.
    template: dict[str, Any] = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        for deployed in client.read_deployments():
            _check_folder(deployed, project, environment["PREFECT_API_URL"])
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    if subprocess.run([*PREFECT, "deploy", "--all"], cwd=project, env=environment, check=False).returncode != 0:
        raise UserError("prefect deploy failed; its lines above have the reason")
    return pool


def _check_folder(deployed: DeploymentResponse, project: Path, url: str) -> None:
    """Refuse to overwrite a deployment that runs in another folder; one that was moved has no such folder any more."""
    for step in deployed.pull_steps or []:
        folder = step.get("prefect.deployments.steps.set_working_directory", {}).get("directory", project)
        if Path(folder, "prefect.yaml").exists() and not os.path.samefile(folder, project):
            raise UserError(
                f"the server at {url} holds the deployments of {folder}: start another one (make serve PORT=4300, or "
                f"another PREFECT_API_URL or PREFECT_HOME), or remove them: prefect deployment delete {deployed.id}"
            )


def _clear_away(project: Path) -> None:
    """End what a run left that was killed together with its worker."""
    try:
        with sole_run(project, "make serve", tell=partial(print, flush=True)):
            pass
    except WorkspaceBusyError as busy:
        print(busy, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve from a command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.serve",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="host of the server (127.0.0.1)")
    parser.add_argument("--port", type=int, default=4200, help="port of the server (4200)")
    given = parser.parse_args(argv)
    end_cleanly()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            serve(Path.cwd(), given.host, given.port)
    except UserError as error:
        return report(str(error), BAD_INPUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
