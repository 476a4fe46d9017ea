"""A throw-away DVC project with toy stages, and one local Prefect server for all tests here."""

import os
import subprocess
import textwrap
from pathlib import Path

import pytest
from dvc.repo import Repo
from prefect.testing.utilities import prefect_test_harness

from flows.stage_run import StageRun, run_stage
from flows.workspace import LOCK_FILE, Workspace, stage_environment

TOY_STAGE = """
import os, pathlib, signal, subprocess, sys, time
name, out, mode = sys.argv[1:4]
pathlib.Path("calls").mkdir(exist_ok=True)
with open(f"calls/{name}", "a") as calls:
    calls.write("called\\n")
print(f"{name} at work")
if mode == "bad-input":
    sys.exit(print("error: rows.csv: no column 'label'", file=sys.stderr) or 2)
if mode == "crash":
    raise RuntimeError("worn bearing")
if mode == "flaky" and len(open(f"calls/{name}").readlines()) < 2:
    sys.exit(7)
if mode == "slow":
    for step in range(1, 5):
        print(f"{name}: {step}/4 steps ({step / 4:.0%}), 1 steps/s, {4 - step} s left", flush=True)
        time.sleep(1)
if mode == "deaf":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if mode in ("hang", "deaf"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path("calls/pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
text = mode + "".join(pathlib.Path(p).read_text() for p in sys.argv[4:])
pathlib.Path(out).parent.mkdir(exist_ok=True)
pathlib.Path(out).write_text(text)
"""

GRAPH = """
stages:
  judge:
    desc: Score the models
    cmd: python toy.py judge metrics.json '{"score":{"accuracy":0.5}}'
    deps: [models]
    metrics:
    - metrics.json: {cache: false}
  train:
    matrix:
      method: ${methods}
      seed: ${seeds}
    desc: Train ${item.method}
    cmd: python toy.py train-${item.method}-${item.seed} models/${item.method}-${item.seed} ${mode} first.txt
    deps: [first.txt]
    outs: ["models/${item.method}-${item.seed}"]
    meta: {retries: 2, timeout: 60}
  first:
    desc: Bring it in
    cmd: python toy.py first first.txt ${word} toy.py
    deps: [toy.py]
    outs: [first.txt]
"""


class ToyProject:
    """A DVC project whose stages are a few lines of Python."""

    def __init__(self, root: Path, git: bool = False) -> None:
        root.mkdir()
        self.root = root
        if git:
            subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
            (root / ".gitignore").write_text("/calls\n/.prefect\n__pycache__\n")
        Repo.init(str(root), no_scm=not git).close()
        (root / "toy.py").write_text(TOY_STAGE)
        self.configure()
        if git:
            self.commit()

    def commit(self) -> None:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "add", "-A"], cwd=self.root, check=True)
        subprocess.run(["git", *who, "commit", "-qm", "state"], cwd=self.root, check=True)

    def configure(self, word: str = "fine", mode: str = "fine", graph: str = GRAPH) -> None:
        (self.root / "dvc.yaml").write_text(textwrap.dedent(graph))
        (self.root / "params.yaml").write_text(f"methods: [a+b, c]\nseeds: [1]\nword: {word}\nmode: {mode}\n")

    def single(self, command: str, timeout: float | None = None) -> None:
        """Make the graph one stage, ``only``, that runs ``toy.py`` in the given mode."""
        meta = f"{{retries: 2, timeout: {timeout}}}" if timeout else "{retries: 2}"
        stage = f"{{cmd: python toy.py only out.txt {command}, deps: [toy.py], outs: [out.txt], meta: {meta}}}"
        self.configure(graph=f"stages: {{only: {stage}}}")

    def uncached(self, word: str, then: str) -> None:
        """Make the graph one stage, ``only``, that writes an uncached and a cached output and then goes on as ``then``.

        The first is ``page.html``, the second ``out.txt``; the third, ``end.txt``, is written at the end.
        """
        write = [f"python toy.py {name} {out} {word}" for name, out in (("page", "page.html"), ("out", "out.txt"))]
        commands = [*write, f"python toy.py only end.txt {then}"]
        stage = f"cmd: {commands}, deps: [toy.py], outs: [page.html: {{cache: false}}, out.txt, end.txt]"
        meta = ", meta: {timeout: 12}" if then == "hang" else ""
        self.configure(graph=f"stages: {{only: {{{stage}{meta}}}}}")

    def calls(self, name: str) -> int:
        """How often a stage's program was started."""
        record = self.root / "calls" / name
        return len(record.read_text().splitlines()) if record.exists() else 0

    @property
    def held(self) -> Workspace:
        """The workspace as a flow hands it to its tasks."""
        (self.root / LOCK_FILE).touch()
        lock = os.open(self.root / LOCK_FILE, os.O_RDONLY)
        return Workspace(self.root, stage_environment(os.environ), lock)

    def run(self, node, lines: list[str] | None = None, **options) -> StageRun:
        return run_stage(node, self.held, (lines if lines is not None else []).append, **options)


@pytest.fixture(scope="session")
def prefect_server():
    with prefect_test_harness(server_startup_timeout=240):
        yield


@pytest.fixture
def toy(tmp_path) -> ToyProject:
    return ToyProject(tmp_path / "toy project")


@pytest.fixture
def git_toy(tmp_path, monkeypatch) -> ToyProject:
    """The same under git, where experiments can be kept, in a folder with letters beyond ASCII."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
    return ToyProject(tmp_path / "toy projéct", git=True)
