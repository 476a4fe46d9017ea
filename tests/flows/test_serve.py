"""A real server and a real worker on loopback, with the deployments that are shipped."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.processes import listen_again
from flows.workspace import WORKSPACE, stage_environment
from tests.flows.conftest import ToyProject

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Served:
    """A toy project whose shipped deployments are served."""

    toy: ToyProject
    client: SyncPrefectClient
    process: "subprocess.Popen[bytes]"

    def start(self, **parameters: Any) -> Any:
        deployment = self.client.read_deployment_by_name("salf/on-demand")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def state(self, run: Any) -> Any:
        return self.client.read_flow_run(run.id).state

    def log(self, run: Any) -> list[str]:
        of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        return [line.message for line in self.client.read_logs(of_run)]

    def until(self, condition: Callable[[], Any], seconds: float = 180) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come to pass"
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.5)
        return found

    def ended(self, run: Any, seconds: float = 180) -> Any:
        return self.until(lambda: (state := self.state(run)).is_final() and state, seconds)

    def at_work(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._ours(process)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(WORKSPACE) == str(self.toy.root) and process.is_running()
        except (psutil.Error, OSError):
            return False

    def hanging(self, **parameters: Any) -> Any:
        """A run whose stage does not end by itself; returns once the stage is at work."""
        (self.toy.root / "calls/pids").unlink(missing_ok=True)
        self.toy.single("hang")
        run = self.start(**parameters)
        self.until((self.toy.root / "calls/pids").exists)
        return run

    def worker(self) -> psutil.Process:
        def found() -> Any:
            children = psutil.Process(self.process.pid).children()
            return next((child for child in children if "worker" in child.cmdline()), None)

        return self.until(found)


def shipped(root: Path) -> ToyProject:
    """A toy project with the shipped flows and deployments."""
    toy = ToyProject(root)
    for room in ("flows", "salf", "stages"):
        (root / room).symlink_to(ROOT / room)
    (root / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    return toy


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def surroundings(**more: str) -> dict[str, str]:
    ours = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PYTHONPATH": str(ROOT), **more}
    inherited = {name: value for name, value in stage_environment(os.environ).items() if not name.startswith("PREFECT")}
    inherited.pop(WORKSPACE, None)
    return inherited | ours


def command(root: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """A flow's command in a project that must end by itself."""
    where: Any = {"cwd": root, "env": surroundings(**more), "capture_output": True, "text": True, "timeout": 240}
    return subprocess.run([sys.executable, "-m", *words], **where)


@contextmanager
def serving(toy: ToyProject, port: int) -> Iterator[Served]:
    log = (toy.root / "serve.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serve", "--port", str(port)],
        cwd=toy.root,
        env=surroundings(),
        stdout=log,
        stderr=log,
        preexec_fn=listen_again,  # tests that a shell started in the background ignore Ctrl-C
    )
    try:
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
            get_client(sync_client=True) as client,
        ):
            here = Served(toy, client, process)
            here.until(lambda: b"serving the deployments" in (toy.root / "serve.log").read_bytes(), 300)
            yield here
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
        log.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    with serving(shipped(tmp_path_factory.mktemp("served") / "toy project"), free_port()) as here:
        yield here


def test_another_checkout_touches_nothing_of_this_one_and_serves_on_a_port_of_its_own(served, tmp_path):
    def folders(client: SyncPrefectClient) -> list[str]:
        steps = [deployment.pull_steps[0].popitem()[1] for deployment in client.read_deployments()]
        return [step["directory"] for step in steps]

    here = [str(served.toy.root)] * 4
    assert folders(served.client) == here
    other = shipped(tmp_path / "other")
    port = str(served.client.api_url.port)
    for refused, message in [
        (command(other.root, "flows.serve", "--port", port), "it is taken"),
        (command(other.root, "flows.serve", PREFECT_API_URL=str(served.client.api_url)), f"of {served.toy.root}:"),
    ]:
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
    assert folders(served.client) == here
    with serving(other, free_port()) as beside:
        assert folders(beside.client) == [str(other.root)] * 4
        assert folders(served.client) == here


def test_every_deployment_that_is_shipped_is_there(served):
    found = {deployment.name: deployment for deployment in served.client.read_deployments()}
    assert set(found) == {"nightly", "on-demand", "sweep", "daily"}
    assert [len(found[name].schedules) for name in ("nightly", "on-demand", "sweep", "daily")] == [1, 0, 0, 1]
    properties = found["on-demand"].parameter_openapi_schema["properties"]
    assert {"targets", "force", "overrides", "wait"} <= set(properties)


def test_a_schedule_fires_and_every_stage_is_a_task(served):
    deployment = served.client.read_deployment_by_name("salf/nightly")
    schedule = deployment.schedules[0].id
    often = IntervalSchedule(interval=timedelta(seconds=20))
    served.client.update_deployment_schedule(deployment.id, schedule, schedule=often)

    def fired() -> Any:
        runs = served.client.read_flow_runs()
        return next((run for run in runs if run.auto_scheduled and run.state.type == StateType.COMPLETED), None)

    def all_runs() -> list[Any]:
        return served.client.read_flow_runs()

    def due(run: Any) -> bool:
        return run.state.is_scheduled() and run.next_scheduled_start_time <= datetime.now(UTC)

    run = served.until(fired, 240)
    served.client.update_deployment_schedule(deployment.id, schedule, active=False)
    assert run.deployment_id == deployment.id
    assert run.state.message.startswith("4 ran in")
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    tasks = {task.name: task.state.name for task in served.client.read_task_runs(flow_run_filter=of_run)}
    assert tasks == dict.fromkeys(["first", "train@a+b-1", "train@c-1", "judge"], "Ran")
    # The runs that came due in the meantime find nothing to do; no later one may disturb the next test.
    served.until(lambda: not any(run.state.is_pending() or run.state.is_running() or due(run) for run in all_runs()))


def test_a_second_run_waits_and_names_the_first_and_cancelling_stops_every_process(served):
    served.toy.single("fine")
    assert served.ended(served.start()).type == StateType.COMPLETED
    good = (served.toy.root / "out.txt").read_text()
    first = served.hanging(wait=True)
    pids = [int(pid) for pid in (served.toy.root / "calls/pids").read_text().split()]
    second = served.start(wait=True)
    waiting = served.until(lambda: [line for line in served.log(second) if line.startswith("waiting: ")])
    assert repr(first.name) in waiting[0]

    refused = served.ended(served.start(wait=False))
    assert refused.name == "Refused"
    assert repr(first.name) in refused.message

    served.client.set_flow_run_state(first.id, Cancelling())
    served.until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 60)
    assert served.ended(first).type == StateType.CANCELLED

    # The second begins where the first has ended.
    served.until(lambda: (served.toy.root / "calls/pids").read_text().split() != [str(pid) for pid in pids])
    assert served.state(second).name == "Running"
    served.client.set_flow_run_state(second.id, Cancelling())
    assert served.ended(second).type == StateType.CANCELLED
    served.until(lambda: not served.at_work())
    assert (served.toy.root / "out.txt").read_text() == good  # put back from the cache


def test_a_worker_that_is_killed_alone_takes_its_run_along_and_the_next_run_recovers(served):
    served.hanging()
    pids = [int(pid) for pid in (served.toy.root / "calls/pids").read_text().split()]
    served.worker().kill()
    served.until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 60)
    served.toy.single("fine")
    assert served.ended(served.start()).type == StateType.COMPLETED
    assert (served.toy.root / "out.txt").exists()
