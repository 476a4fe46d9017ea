"""Push to a remote, clone, pull: the clone has every artifact and nothing to run.

The real dvc.yaml under the real DVC and git, and a server that speaks S3. The stages' programs are
replaced by a stand-in, so that the chain takes seconds.
"""

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stage_sources import ROOT
from tests.test_reruns import Copy, after, use_standin

pytestmark = [pytest.mark.chain, pytest.mark.slow]

BUCKET = "salf"
SECRET = "planted-secret-access-key"
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
KEPT = ["data/base", "data/prepared", "data/traces", "data/plan", "data/models", "reports"]


class Tracked(Copy):
    """A copy of the project in git, with the project's own DVC configuration and rules of what git ignores."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
        for name in (".gitignore", "data/.gitignore", "reports/.gitignore"):
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        with (root / ".git-exclude").open("w") as exclude:
            exclude.write("calls.txt\n/bin\n.git-exclude\n")
        git(root, "init", "--quiet", "--initial-branch", "main")
        git(root, "config", "core.excludesFile", str(root / ".git-exclude"))

    def commit(self, message: str) -> None:
        """Commit all that the project keeps in git."""
        git(self.root, "add", "--all")
        git(self.root, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", message)


class Clone(Copy):
    """A fresh clone: nothing but what git holds."""

    def __init__(self, source: Path, root: Path) -> None:
        git(source.parent, "clone", "--quiet", str(source), str(root))
        self.root = root


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sha256sums(folder: Path) -> str:
    """What the system's own tool says of every artifact below a project's folder."""
    find = ["find", *KEPT, "-type", "f", "-not", "-path", "*/.work/*"]
    files = subprocess.run(find, cwd=folder, check=True, capture_output=True, text=True).stdout.split("\n")
    return subprocess.run(
        ["sha256sum", "--", *sorted(filter(None, files))], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Tracked:
    """A project in git whose whole chain has run."""
    root = tmp_path_factory.mktemp("first") / "project"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        use_standin(patch, root)
        copy = Tracked(root)
        assert copy.repro() == after("base")
    return copy


@pytest.fixture
def finished(made, monkeypatch) -> Tracked:
    """The finished project, with the stand-in at work."""
    use_standin(monkeypatch, made.root)
    return made


@pytest.fixture
def s3(tmp_path, monkeypatch) -> Iterator[str]:
    """The address of an S3 server with an empty bucket, in a process of its own."""
    for package in ("dvc_s3", "moto", "flask", "flask_cors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _make_bucket(address, server)
            yield address
        finally:
            server.terminate()
            server.wait(10)


def _make_bucket(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT"), timeout=5)
            return
        except OSError:
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.2)


def share_and_clone(finished: Tracked, clone: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """Commit, push to the remote, clone, pull; the two share nothing but git and the remote."""
    finished.commit("results")
    dvc(finished.root, "push")
    fresh = Clone(finished.root, clone)
    fresh.files = finished.files
    assert not (clone / "data/base").exists()
    monkeypatch.chdir(clone)
    dvc(clone, "pull")
    return fresh


def check(fresh: Clone, finished: Tracked) -> None:
    """The clone has the artifacts byte for byte, and nothing to run."""
    assert sha256sums(fresh.root) == sha256sums(finished.root)
    assert "Data and pipelines are up to date." in dvc(fresh.root, "status")
    assert fresh.repro() == set()
    assert git(fresh.root, "status", "--porcelain") == ""


def test_a_clone_that_pulled_from_a_folder_runs_nothing_but_what_its_own_change_reaches(
    finished, tmp_path, monkeypatch
):
    dvc(finished.root, "remote", "add", "--force", "--default", "store", str(tmp_path / "shared folder"))
    fresh = share_and_clone(finished, tmp_path / "clone", monkeypatch)
    check(fresh, finished)
    fresh.change("evaluate.bootstrap", fresh.get("evaluate.bootstrap") + 1)
    assert fresh.repro() == after("evaluate")


def test_a_clone_that_pulled_from_an_s3_server_has_nothing_to_run(finished, s3, tmp_path, monkeypatch):
    dvc(finished.root, "remote", "add", "--force", "--default", "store", f"s3://{BUCKET}/dvc")
    dvc(finished.root, "remote", "modify", "store", "endpointurl", s3)
    fresh = share_and_clone(finished, tmp_path / "clone", monkeypatch)
    check(fresh, finished)
    # The keys came from the environment, and stay there.
    holders = [file for file in fresh.root.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert holders == []
