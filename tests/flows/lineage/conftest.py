"""A throw-away project in git and DVC whose toy stages are recorded as the real ones are."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dvc.repo import Repo

from flows.lineage.__main__ import main
from flows.lineage.ledger import read_records, record_all
from flows.sweep import RUN_APART
from flows.workspace import stage_environment
from tests.stage_sources import ROOT

STAGE = """
import sys
from collections.abc import Mapping
from pathlib import Path
from salf.errors import UserError
from stages.common.command import exit_code
def main(argv):
    word, out, *read = sys.argv[1:]
    if word == "bad":
        raise UserError("rows.csv: no column 'label'")
    Path(out).parent.mkdir(exist_ok=True)
    text = word + "".join(Path(path).read_text() for path in read)
    if out.endswith("/"):
        Path(out).mkdir(exist_ok=True)
        for name in ("one", "two"):
            Path(out, name).write_text(f"{name} {text}")
    else:
        Path(out).write_text(text)
if __name__ == "__main__":
    sys.exit(exit_code(main))
"""

GRAPH = """
stages:
  prepare:
    cmd: python -m toystage ${prepare.word} data/prepared/ raw.txt
    deps: [raw.txt, toystage]
    params: [prepare]
    outs: [data/prepared]
  train:
    matrix:
      seed: ${seeds}
    cmd: python -m toystage ${train.word} models/seed${item.seed} data/prepared/one
    deps: [data/prepared, toystage]
    params: [train]
    outs: ["models/seed${item.seed}"]
  judge:
    cmd: python -m toystage '{"score":0.5}' metrics.json
    deps: [models, toystage]
    metrics:
    - metrics.json: {cache: false}
"""


class Project:
    """A project with three toy stages, in a folder with a space and a letter beyond ASCII."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.git("init", "--initial-branch=main")
        Repo.init(str(root)).close()
        (root / "toystage").mkdir()
        (root / "toystage/__init__.py").touch()
        (root / "toystage/__main__.py").write_text(STAGE)
        (root / "raw.txt").write_text("raw")
        (root / "dvc.yaml").write_text(GRAPH)
        (root / ".dvcignore").write_text("__pycache__/\n")
        (root / ".gitignore").write_text("__pycache__/\n/reports/lineage/\n/data\n/models\n")
        self.params()
        self.commit()

    @classmethod
    def at(cls, root: Path) -> "Project":
        """A project that is there already."""
        project = cls.__new__(cls)
        project.root = root
        return project

    def params(self, prepare: str = "fine", train: str = "fine", seeds: str = "[1, 2]") -> None:
        text = f"prepare: {{word: {prepare}}}\ntrain: {{word: {train}}}\nseeds: {seeds}\n"
        (self.root / "params.yaml").write_text(text)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit(self, message: str = "state") -> str:
        self.git("add", ".")
        self.git("commit", f"--message={message}")
        return self.git("rev-parse", "HEAD").strip()

    def dvc(self, *arguments: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        return self._run([sys.executable, "-m", "dvc", *arguments], check, environment)

    def apart(self, *arguments: str) -> str:
        """An experiment in a folder of its own, as flows run it."""
        return self._run([*RUN_APART, *arguments])

    def _run(self, command: list[str], check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(self.root)])}
        whole = {**stage_environment(os.environ), **path, **(environment or {})}
        ended = subprocess.run(command, cwd=self.root, env=whole, text=True, capture_output=True)
        assert not check or ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    @property
    def ledger(self) -> Path:
        return self.root / "reports/lineage/records.jsonl"

    def records(self, kind: str) -> list[Any]:
        return [record for record in read_records(self.ledger) if record.kind == kind]


class Answer(NamedTuple):
    """What a command of the lineage's said."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path / "a projéct")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A project whose chain ran, was recorded and committed; to be copied."""
    made = Project(tmp_path_factory.mktemp("finished") / "a projéct")
    made.dvc("repro")
    record_all(made.root)
    made.commit("ran")
    return made.root


@pytest.fixture
def ran(tmp_path, finished) -> Project:
    """A project of one's own whose chain ran."""
    shutil.copytree(finished, tmp_path / "a projéct", symlinks=True)
    return Project.at(tmp_path / "a projéct")


@pytest.fixture
def lineage(capsys):
    """Call a command of the lineage's on a project: ``lineage(project, "verify")``."""

    def call(project: Project, *arguments: str) -> Answer:
        status = main([*arguments, "--project", str(project.root)])
        return Answer(status, *capsys.readouterr())

    return call
