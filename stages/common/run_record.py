"""Records the start and the end of a stage's process in the ledger, wherever DVC runs the stage."""

import contextlib
import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from salf.files import WORK_FOLDER, git, sha256_file
from salf.ledger import LEDGER, End, Machine, Start, append, folder_name, ledger_of

_PACKAGES: Final = (
    *("accelerate", "datasets", "dvc", "gguf", "numpy", "pandas", "peft", "prefect", "pyarrow", "safetensors"),
    *("scikit-learn", "scipy", "tokenizers", "torch", "transformers"),
)
_IGNORED: Final = {WORK_FOLDER, "__pycache__"}  # as .dvcignore has it


@dataclass(frozen=True)
class Run:
    """A run whose start is in the ledger; ``began`` is in seconds of the monotonic clock."""

    ledger: Path
    name: str
    stage: str
    arguments: list[str]
    began: float


def begin(argv: Sequence[str] | None = None) -> Run | None:
    """Record that this process starts; returns ``None`` where DVC does not run it as a stage, or another rank does."""
    stage, root = os.environ.get("DVC_STAGE"), os.environ.get("DVC_ROOT")
    if not stage or not root or os.environ.get("RANK", "0") != "0":  # of torchrun's processes the first records
        return None
    arguments = list(sys.argv[1:] if argv is None else argv)
    stage = stage.rpartition(":")[2]  # DVC names dvc.yaml too when it is called from another folder
    run = Run(ledger_of(Path(root)), uuid.uuid4().hex, stage, arguments, time.monotonic())
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = [Path(sys.argv[0]).name] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    start = Start(
        run=run.name,
        stage=stage,
        command=["python", *program, *arguments],
        temporary=Path(root, ".dvc/tmp").resolve() in Path.cwd().resolve().parents,  # an experiment in a copy
        **code_state(Path.cwd())[0],
        flow_run=os.environ.get("SALF_FLOW_RUN"),
        flow_run_name=os.environ.get("SALF_FLOW_RUN_NAME"),
        versions=versions(),
        machine=Machine.here(),
        seed=next((int(n) for option, n in pairwise(arguments) if option == "--seed" and n.isdigit()), None),
    )
    append(run.ledger, start)
    return run


def finish(run: Run | None, status: int) -> None:
    """Record how a run ended; if the ledger cannot be written now, warn and keep the stage's result."""
    if run is None:
        return
    try:
        outputs = _outputs(run) if status == 0 else {}
        seconds = round(time.monotonic() - run.began, 3)
        append(run.ledger, End(run=run.name, status=status, seconds=seconds, outputs=outputs))
    except OSError as error:
        print(f"warning: the end of this run is not recorded: {error.strerror}", file=sys.stderr)


def _outputs(run: Run) -> dict[str, str]:
    """DVC's names of what the run wrote: the arguments that are outputs of its stage in dvc.yaml."""
    from ruamel.yaml import YAML  # the stage has loaded it, and a run's start does not need it
    from ruamel.yaml.error import YAMLError

    try:
        graph = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))
        stage = graph["stages"][run.stage.partition("@")[0]]
        declared = [*stage.get("outs", []), *stage.get("metrics", [])]
    except (OSError, ValueError, YAMLError, AttributeError, KeyError, TypeError):  # none here, or it is being edited
        return {}
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in declared]
    patterns = [re.sub(r"\\\$\\\{.*?\\\}", ".+", re.escape(path)) for path in paths]
    words = {word.rstrip("/") for word in run.arguments}
    written = [word for word in words if any(re.fullmatch(one, word) for one in patterns) and Path(word).exists()]
    return {path: _content_name(Path(path)) for path in sorted(written)}


def _content_name(path: Path) -> str:
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not _IGNORED & set(file.parts)]
        return folder_name({file.relative_to(path).as_posix(): _content_name(file) for file in files})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def code_state(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return commit and branch as git says (``None`` outside of git), and the files that differ from the commit.

    What the pipeline itself writes is no change of its code.
    """
    status = ("status", "--porcelain=v2", "--branch", "--untracked-files=all", "--no-renames", "-z", "--", ".")
    found = git(folder, *status)
    place = git(folder, "rev-parse", "--is-shallow-repository", "--show-prefix")
    if found is None or place is None:
        return dict.fromkeys(["commit", "branch", "detached", "shallow", "dirty", "dirty_files_sha256"]), []
    shallow, prefix = os.fsdecode(place).split("\n")[:2]  # git names files from the top of its repository
    entries = os.fsdecode(found).split("\0")
    head = dict(entry.removeprefix("# branch.").split(" ", 1) for entry in entries if entry.startswith("# branch."))
    written = {"dvc.lock", *_pipeline_outputs(folder)}
    paths = [path.removeprefix(prefix) for path in map(_path_of, entries) if path]
    changed = [p for p in paths if p not in written and not p.startswith(f"{LEDGER.parent.as_posix()}/")]
    facts = {
        "commit": None if head["oid"] == "(initial)" else head["oid"],
        "branch": None if head["head"] == "(detached)" else head["head"],
        "detached": head["head"] == "(detached)",
        "shallow": shallow == "true",
        "dirty": bool(changed),
        "dirty_files_sha256": _hash_of_files(folder, changed) if changed else None,
    }
    return facts, sorted(changed)


def _path_of(entry: str) -> str | None:
    """The path in an entry of ``git status --porcelain=v2``: changed, unmerged or untracked."""
    fields = {"1": 8, "u": 10, "?": 1}.get(entry[:1])
    return entry.split(" ", fields)[fields] if fields else None


def _pipeline_outputs(folder: Path) -> list[str]:
    """Paths under ``outs`` in dvc.lock. DVC writes it in one fixed form; a YAML parser takes 0.1 s."""
    try:
        text = (folder / "dvc.lock").read_text(encoding="utf-8")
    except OSError:
        return []
    sections = re.findall(r"^    outs:\n((?:    [- ].*\n?)+)", text, re.MULTILINE)
    return [path.strip("'\"") for section in sections for path in re.findall(r"- path: (.*)", section)]


def _hash_of_files(folder: Path, paths: Sequence[str]) -> str:
    """SHA-256 over names and contents; the same edits give the same hash."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        held = "absent"  # deleted, a folder of another repository, or not to be read
        with contextlib.suppress(OSError):
            held = sha256_file(folder / path)
        digest.update(f"{held} {path}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on; what is not installed is left out."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
