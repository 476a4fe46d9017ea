"""A small DVC project in git whose stages record their runs with the project's own writer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.lineage.ledger import record_all
from flows.workspace import stage_environment

ROOT = Path(__file__).resolve().parents[4]

STAGE = """
import json, sys
from pathlib import Path
from stages.common.command import exit_code

def work(argv):
    out, text = Path(argv[0]), Path("raw.csv").read_text()
    if Path("fail").exists():
        raise RuntimeError("worn bearing")
    if out.suffix:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps({"score": 0.5}))
        return
    out.mkdir(parents=True)
    (out / "config.json").write_text("{}")
    for layer in range(3):
        (out / f"layer_{layer}.safetensors").write_text(f"{layer} {argv[1:] if layer == 2 else ''} {text}")

sys.exit(exit_code(work, sys.argv[1:]))
"""

GRAPH = """
stages:
  base:
    cmd: python stage.py data/base
    deps: [stage.py, raw.csv]
    params: [model]
    outs: [data/base]
  finetune:
    matrix:
      method: [full, salf+lora]
      seed: [1]
    cmd: python stage.py data/models/${item.method}-seed${item.seed} --seed ${item.seed}
    deps: [stage.py, raw.csv, data/base/config.json]
    params: [finetune]
    outs: ["data/models/${item.method}-seed${item.seed}"]
  evaluate:
    cmd: python stage.py reports/metrics.json
    deps: [stage.py, raw.csv, data/models, ../labels.csv]
    params: [model, finetune]
    metrics: [reports/metrics.json: {cache: false}]
"""

PARAMS = """
model: {source: embedded, revision: null}
finetune: {rate: [0.001, 0.01], epochs: 2, merge: true, note: "a, b and ü"}
"""


class Project:
    """A folder with the project, and the commands that tests run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> "Project":
        """Write the project's files and commit them."""
        self.root.mkdir()
        files = {
            "stage.py": STAGE,
            "dvc.yaml": GRAPH,
            "params.yaml": PARAMS,
            "raw.csv": "text,label\nblue,cold\n",
            "README.md": "# A project\n",
            ".gitignore": "/data\n/reports/lineage\n",
        }
        (self.root.parent / "labels.csv").write_text("cold,heat\n", encoding="utf-8")  # outside of the project
        for name, content in files.items():
            (self.root / name).write_text(content, encoding="utf-8")
        self.run("git", "init", "--quiet", "--initial-branch", "main")
        self.run("dvc", "init", "--quiet")
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "first")
        return self

    def run(self, *command: str, **variables: str) -> str:
        """Run a command to its good end and return what it printed."""
        folder = {"PYTHONPATH": str(ROOT), "GIT_CONFIG_GLOBAL": os.devnull, **variables}
        environment = {**stage_environment(os.environ), **folder}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def reproduce(self) -> None:
        """Bring the chain up to date and record what DVC locked."""
        self.run("dvc", "repro", "--quiet")
        record_all(self.root)

    def export(self, *arguments: str, **variables: str) -> str:
        """Run ``python -m flows.lineage export`` in the project."""
        return self.run(sys.executable, "-m", "flows.lineage", "export", *arguments, **variables)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The project after one run of its chain."""
    made = Project(tmp_path_factory.mktemp("made") / "project").create()
    made.reproduce()
    return made


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished project, in a folder with a space and letters beyond ASCII."""
    shutil.copytree(finished.root, tmp_path / "Übung 1", symlinks=True)
    shutil.copy(finished.root.parent / "labels.csv", tmp_path)
    return Project(tmp_path / "Übung 1")
