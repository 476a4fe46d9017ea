"""A git and DVC project in an awkward folder whose two small stages write as the real ones do."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
from dvc.repo import Repo

from flows.workspace import stage_environment
from tests.conftest import PROJECT

PARTS = 12
SOURCE = "data/größe 1.txt"
FOLDER = "Übung mit Leerzeichen 数据"

STAGE = """
import hashlib, sys, time
from pathlib import Path
from salf.files import replacing_file, replacing_folder
from stages.common.command import exit_code

def main(argv):
    name, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    print(f"{name} at work", flush=True)
    out.parent.mkdir(exist_ok=True)
    if name == "first":
        facts = dict(line.strip().split(": ") for line in open("params.yaml") if line.startswith(" "))
        with replacing_folder(out) as folder:
            for n in range(int(facts["parts"])):
                (folder / f"part-{n:02d}.txt").write_text(f"{facts['word']} {n} {source.read_text()}" * 1000)
                time.sleep(float(facts["pause"]))
    else:
        with replacing_file(out) as aside:
            digests = [hashlib.sha256(part.read_bytes()).hexdigest() for part in sorted(source.iterdir())]
            aside.write_text("\\n".join(digests))

sys.exit(exit_code(main))
"""

GRAPH = f"""
stages:
  first:
    cmd: python stage.py first "{SOURCE}" out/first
    deps: [stage.py, "{SOURCE}"]
    params: [first]
    outs: [out/first]
  second:
    cmd: python stage.py second out/first out/second.txt
    deps: [stage.py, out/first]
    outs: [out/second.txt]
"""


class HardProject:
    """The project at a folder; every command is a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def new(cls, root: Path) -> "HardProject":
        """Make the project, run it once and commit it."""
        root.mkdir(parents=True)
        project = cls(root)
        project.git("init", "-q", "-b", "main")
        Repo.init(str(root)).close()
        shutil.copy(PROJECT / ".dvc/config", root / ".dvc/config")
        (root / ".gitignore").write_text("/out/\n/reports/\n.work/\n__pycache__/\n")
        (root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
        (root / "stage.py").write_text(textwrap.dedent(STAGE), encoding="utf-8")
        (root / SOURCE).parent.mkdir()
        (root / SOURCE).write_text("raw\n")
        project.set(word="red")
        assert project.repro().returncode == 0
        project.commit("first")
        return project

    @property
    def environment(self) -> dict[str, str]:
        return {**stage_environment(os.environ), "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def cache(self) -> Path:
        return self.root / ".dvc/cache/files/md5"

    def set(self, word: str, pause: float = 0.0, key: str = "word") -> None:
        """Write params.yaml."""
        (self.root / "params.yaml").write_text(f"first:\n  {key}: {word}\n  parts: {PARTS}\n  pause: {pause}\n")

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        names = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "protocol.file.allow=always"]
        command = ["git", *names, *arguments]
        return subprocess.run(command, cwd=folder or self.root, check=True, capture_output=True, text=True).stdout

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").strip()

    def python(self, *arguments: str, **more) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *arguments]
        environment = {**self.environment, **more}
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)

    def repro(self, *arguments: str, **more) -> "subprocess.CompletedProcess[str]":
        return self.python("-m", "dvc", "repro", *arguments, **more)

    def lineage(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.python("-m", "flows.lineage", *arguments)

    def start(self) -> "subprocess.Popen[str]":
        """``dvc repro`` as the leader of a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "dvc", "repro"],
            cwd=self.root, env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def expected(self, word: str, raw: str = "raw\n") -> dict[str, str]:
        """Every output of the chain, by its path."""
        parts = {f"out/first/part-{n:02d}.txt": f"{word} {n} {raw}" * 1000 for n in range(PARTS)}
        digests = [hashlib.sha256(text.encode()).hexdigest() for _, text in sorted(parts.items())]
        return {**parts, "out/second.txt": "\n".join(digests)}

    def outputs(self) -> dict[str, str]:
        """What lies in the workspace, hidden working folders aside."""
        files = [file for file in sorted((self.root / "out").rglob("*")) if file.is_file()]
        named = {file.relative_to(self.root).as_posix(): file for file in files}
        return {name: file.read_text() for name, file in named.items() if "/." not in name}

    def unsound(self) -> list[str]:
        """Objects of the cache whose bytes are not what their name says, by hashlib."""
        wrong = []
        for file in self.objects():
            name = file.parent.name + file.name.removesuffix(".dir")
            if hashlib.md5(file.read_bytes()).hexdigest() != name:
                wrong.append(name)
        return wrong

    def objects(self) -> Iterator[Path]:
        """All objects of the cache; what DVC is still copying has no object's name yet."""
        for file in sorted(self.cache.glob("[0-9a-f][0-9a-f]/*")):
            if len(file.name.removesuffix(".dir")) == 30:
                yield file

    def object_of(self, text: str) -> Path:
        """The cache's object that holds a text."""
        digest = hashlib.md5(text.encode()).hexdigest()
        return self.cache / digest[:2] / digest[2:]


def kill_group(process: "subprocess.Popen[str]", alone: bool) -> None:
    """Kill the stage's process alone, or DVC with everything that it started."""
    if alone:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since, or is ending
                if "stage.py" in " ".join(child.cmdline()):
                    child.kill()
        return
    os.killpg(process.pid, signal.SIGKILL)
