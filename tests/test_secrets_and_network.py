"""The whole chain as a flow: no secret of the environment stays anywhere, and nothing leaves this machine."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.workspace import stage_environment
from stages import QUIET
from tests.conftest import PROJECT, write_tiny_task

pytestmark = [pytest.mark.chain, pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "OPENAI_API_KEY", "DATABASE_PASSWORD", "GITHUB_TOKEN")

# Runs at the start of every Python process of the chain, before anything else.
GUARD = """
import os, socket, sys

LOCAL = {"", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", None, socket.gethostname(), b"localhost", b"127.0.0.1"}
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0,
          "socket.gethostbyname": 0}

def guard(event, arguments):
    if event not in EVENTS:
        return
    there = arguments[EVENTS[event]]
    if isinstance(there, (str, bytes)) and event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return  # the path of a Unix socket
    host = there[0] if isinstance(there, tuple) else there
    if host in LOCAL or str(host).startswith("127."):
        return
    with open(os.environ["NETWORK_ATTEMPTS"], "a") as file:
        file.write(f"{event} {there} {' '.join(sys.argv)[:200]}\\n")
    raise OSError(101, "Network is unreachable")

sys.addaudithook(guard)
with open(os.environ["NETWORK_GUARDED"], "a") as file:
    file.write(" ".join(sys.orig_argv)[:300] + "\\n")
"""

# In a network namespace of its own there is a loopback device and it is down.
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as handle:
    fcntl.ioctl(handle, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Finished:
    """The chain's folder after the flow, what was printed, the planted secrets, what the guards wrote."""

    root: Path
    printed: str
    planted: dict[str, str]
    environment: dict[str, str]
    attempts: Path
    guarded: Path

    def files(self) -> list[Path]:
        """Every file but git's objects, which hold what the other files do, compressed."""
        found = (file for file in self.root.rglob("*") if file.is_file() and not file.is_symlink())
        return [file for file in found if ".git" not in file.relative_to(self.root).parts]


def cut_off() -> list[str]:
    """The beginning of a command line that has no network at all, where this system lets users do that."""
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-S", "-c", LOOPBACK_UP]
    if not shutil.which("unshare"):
        return []
    tried = subprocess.run([*command, sys.executable, "-c", ""], capture_output=True)
    return [] if tried.returncode else command


def copy_project(root: Path, hub_folder: Path) -> None:
    """The working tree as a repository of its own, with a task that takes seconds."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if name == "dvc.lock" or name.startswith(("reports/", "tests/")) or not (PROJECT / name).is_file():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, root / name)
    write_tiny_task(
        root,
        hub_folder,
        data__limits={"train": 48, "validation": 12, "test": 24},
        trace__sample=24,
        trace__losses=12,
        fit__bootstrap=20,
        compare__methods=["full", "salf"],
        finetune__epochs=1,
        evaluate__bootstrap=20,
    )
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *who, *command], cwd=root, check=True, capture_output=True)


def guarded_environment(place: Path) -> dict[str, str]:
    """That of a flow, with the guard in every Python process; it writes into ``place``."""
    hook = place / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(GUARD)
    environment = {
        **stage_environment(os.environ),
        "PYTHONPATH": str(hook),
        "NETWORK_ATTEMPTS": str(place / "attempts"),
        "NETWORK_GUARDED": str(place / "guarded.txt"),
    }
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "SALF_LEDGER"):
        environment.pop(name, None)
    return environment


@pytest.fixture(scope="module")
def finished(tmp_path_factory, hub_folder) -> Finished:
    place = tmp_path_factory.mktemp("guarded")
    root = place / "project"
    root.mkdir()
    copy_project(root, hub_folder)
    planted = {name: f"sk{secrets.token_hex(16)}" for name in NAMES}
    environment = {**guarded_environment(place), **planted}
    command = [*cut_off(), sys.executable, "-m", "flows.pipeline"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-6000:]
    return Finished(root, printed, planted, environment, place / "attempts", place / "guarded.txt")


def test_the_chain_needs_no_network_and_does_not_try(finished):
    assert (finished.root / "reports/index.html").is_file()
    assert not finished.attempts.exists(), finished.attempts.read_text()


def test_the_guard_stood_in_every_process_of_the_chain(finished):
    guarded = finished.guarded.read_text()
    stages = ["base", "prepare", "trace", "fit", "signals", "plan", "finetune", "evaluate", "report"]
    server = "-m prefect --no-prompt server start"
    for program in ["flows.pipeline", server, "-m dvc ", *(f"stages.{stage} " for stage in stages)]:
        assert program in guarded


@pytest.mark.parametrize(
    "call",
    [
        "socket.create_connection(('192.0.2.1', 9), 1)",
        "socket.getaddrinfo('example.invalid', 443)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
    ],
)
def test_the_guard_sees_an_attempt(finished, tmp_path, call):
    environment = {**finished.environment, "NETWORK_ATTEMPTS": str(tmp_path / "seen")}
    done = subprocess.run([sys.executable, "-c", f"import socket; {call}"], env=environment, capture_output=True)
    assert done.returncode != 0
    assert (tmp_path / "seen").read_text().startswith("socket.")


def loud(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a user who has set nothing against telemetry."""
    return {name: value for name, value in environment.items() if name not in QUIET}


def test_stages_under_bare_dvc_do_not_try_either(tmp_path, hub_folder):
    root = tmp_path / "project"
    root.mkdir()
    copy_project(root, hub_folder)
    command = [sys.executable, "-m", "dvc", "repro", "prepare"]
    environment = loud(guarded_environment(tmp_path))
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    guarded = (tmp_path / "guarded.txt").read_text()
    assert all(program in guarded for program in ("-m dvc ", "stages.base ", "stages.prepare "))
    attempts = tmp_path / "attempts"
    assert not attempts.exists(), attempts.read_text()


@pytest.mark.parametrize(("given", "quiet"), [({}, "True"), (dict.fromkeys(QUIET, "0"), "False")])
def test_a_stage_keeps_its_libraries_quiet_unless_a_user_wants_them_to_speak(given, quiet):
    code = "import stages; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    environment = {**loud(os.environ), **given, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == quiet


def holds(file: Path, values: list[str]) -> bool:
    content = file.read_bytes()
    if file.suffix == ".parquet":  # its columns are compressed
        table = pq.read_table(file)
        content += str(table.to_pylist()).encode() + str(table.schema.metadata).encode()
    return any(value.encode() in content for value in values)


def test_no_secret_is_printed_or_written_anywhere(finished):
    values = list(finished.planted.values())
    assert [name for name, value in finished.planted.items() if value in finished.printed] == []
    files = finished.files()
    names = {file.relative_to(finished.root).as_posix() for file in files}
    assert {
        "dvc.lock",
        "reports/lineage/records.jsonl",
        "reports/index.html",
        "data/models/salf-seed1/run.json",
    } <= names
    assert any(name.startswith(".prefect/") and name.endswith(".db") for name in names)
    assert [file for file in files if holds(file, values)] == []


def test_the_search_for_secrets_finds_one(finished, tmp_path):
    (tmp_path / "log").write_bytes(b"\0..." + finished.planted["HF_TOKEN"].encode() + b"\xff")
    assert holds(tmp_path / "log", list(finished.planted.values()))


def test_the_records_name_no_machine_no_path_and_no_variable(finished):
    text = (finished.root / "reports/lineage/records.jsonl").read_text(encoding="utf-8")
    assert str(finished.root) not in text
    assert socket.gethostname() not in text
    told = [n for n, v in finished.environment.items() if len(v) >= 8 and v in text]
    assert told == []
