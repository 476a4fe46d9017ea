"""Serve the deployments of prefect.yaml: starts server, work pool, deployments and worker.

If PREFECT_API_URL names a server, that server is used. Otherwise one starts on this machine and
ends with this command.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker
from ruamel.yaml import YAML

from flows.environment import stage_environment
from flows.running import bury, report
from flows.workspace import WorkspaceBusyError, clear_away, sole_run
from salf.errors import UserError

START_SECONDS = 180.0  # a new database on a slow machine
RESTART_SECONDS = 5.0
STOP_SECONDS = 60.0
IDLE_SECONDS = 10.0  # a worker that has run something never ends when it is asked to (Prefect 3.8.8)
_PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")
_EXAMPLES = """examples:
  python -m flows.serve                     a server on 127.0.0.1:4200, ended by Ctrl-C
  python -m flows.serve --port 4300
  PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.serve
                                            deployments and worker for a server that is running
"""


def serve(project: Path, host: str, port: int) -> None:
    """Deploy everything and work for it until this process is stopped."""
    url = os.environ.get("PREFECT_API_URL")
    environment = {**stage_environment(os.environ), "PREFECT_API_URL": url or f"http://{host}:{port}/api"}
    server = None if url else _start([*_PREFECT, "server", "start", "--host", host, "--port", str(port)], environment)
    worker: subprocess.Popen[bytes] | None = None
    try:
        _await_server(environment["PREFECT_API_URL"], server)
        with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
            pool = _deploy(project, environment)
            while server is None or server.poll() is None:
                _clear_away(project)
                worker = _start([*_PREFECT, "worker", "start", "--pool", pool, "--type", "process"], environment)
                print(f"serving the deployments of prefect.yaml; see {environment['PREFECT_API_URL'][:-4]}", flush=True)
                status = worker.wait()
                print(f"the worker ended with {status}; another one starts", file=sys.stderr, flush=True)
                time.sleep(RESTART_SECONDS)
        raise UserError("the server has ended")
    finally:
        for process in (worker, server):
            _stop(process)


def _start(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL, start_new_session=True)


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


def _await_server(url: str, server: "subprocess.Popen[bytes] | None") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        if server is not None and server.poll() is not None:
            raise UserError(f"the server ended with {server.returncode}; is its port taken? see --port")
        if time.monotonic() > deadline:
            raise UserError(f"no server answers at {url} within {START_SECONDS:.0f} s")
        time.sleep(0.5)


def _deploy(project: Path, environment: Mapping[str, str]) -> str:
    deployments = YAML(typ="safe", pure=True).load((project / "prefect.yaml").read_text(encoding="utf-8"))
    pool = str(deployments["definitions"]["work_pool"]["name"])
    # ``prefect work-pool create`` would fetch a list of types from the web.
    template: dict[str, Any] = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    deployed = subprocess.run([*_PREFECT, "deploy", "--all"], cwd=project, env=dict(environment), check=False)
    if deployed.returncode != 0:
        raise UserError("prefect deploy failed; its lines above have the reason")
    return pool


def _clear_away(project: Path) -> None:
    """End what a run left that was killed together with its worker."""
    try:
        with sole_run(project, "make serve") as hold:
            bury(hold, "make serve")
            clear_away(project, hold, lambda line: print(line, flush=True))
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        serve(Path.cwd(), given.host, given.port)
    except UserError as error:
        return report(str(error), 1)
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
