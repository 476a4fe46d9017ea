"""``python -m flows.lineage export``: the records in formats that other tools read."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from flows.lineage import ledger
from flows.lineage.formats.results import ExportError, Result, members, results
from flows.lineage.ledger import LedgerError
from flows.lineage.lock import LOCK_FILE, LockError, read_lock
from flows.lineage.project import Project, ProjectError, open_project

# The formats and their libraries are imported where they are asked for: together they take seconds.

_EXAMPLES: Final = """examples:
  python -m flows.lineage export ro-crate                    describe this folder in its ro-crate-metadata.json
  python -m flows.lineage export ro-crate --out crate        a self-contained folder with copies of all files
  python -m flows.lineage export openlineage                 the events of all runs, as JSON lines
  python -m flows.lineage export slsa --key key.pem          a signed statement for each model folder
"""
_EVENTS: Final = Path("reports/lineage/openlineage-runs.jsonl")
_PROVENANCE: Final = Path("reports/lineage/provenance")
_TOLD: Final = {
    "dvc.yaml": "the graph of stages",
    "params.yaml": "what can be set",
    LOCK_FILE: "what DVC last locked",
    "README.md": "what this is and how to run it",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Give the subcommand ``export`` its arguments; ``--project`` and ``--json`` come from the caller."""
    command.epilog = _EXAMPLES
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("format", choices=sorted(_FORMATS), help="format to write")
    command.add_argument("--out", type=Path, metavar="PATH", help="output folder (for openlineage: a file)")
    command.add_argument("--key", type=Path, metavar="FILE", help="slsa: sign with this Ed25519 key (PEM)")


def run(arguments: argparse.Namespace) -> int:
    """Do what the subcommand's arguments say; returns the exit status (0 done, 2 refused)."""
    try:
        written = export(arguments.format, arguments.project.resolve(), arguments.out, arguments.key)
    except (ExportError, LedgerError, LockError, ProjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps([str(path) for path in written]) if arguments.json else "\n".join(map(str, written)))
    return 0


def export(name: str, project: Path, out: Path | None = None, key: Path | None = None) -> list[Path]:
    """Write the records in one format and return the files written.

    Args:
        name: ``ro-crate``, ``openlineage`` or ``slsa``.
        project: the DVC project.
        out: where to; ``None``: the format's usual place in the project.
        key: a private key to sign with.

    Raises:
        ExportError: the records or the workspace do not allow it.
        LedgerError: the ledger cannot be read.
        LockError: dvc.lock cannot be read.
        ProjectError: the folder is no DVC project.
    """
    if key is not None and name != "slsa":
        raise ExportError(f"--key applies to slsa only, not to {name}")
    try:
        with open_project(project) as opened:
            return _FORMATS[name](opened, out, key)
    except OSError as error:
        raise ExportError(f"{error.filename or 'cannot write'}: {error.strerror}") from error


def _export_ro_crate(project: Project, out: Path | None, _key: Path | None) -> list[Path]:
    from flows.lineage.formats import ro_crate

    found = _current(project)
    told = {path: text for path, text in _TOLD.items() if (project.root / path).is_file()}
    if project.ledger.is_relative_to(project.root):
        told[project.ledger.relative_to(project.root).as_posix()] = (
            "every run, each line with the hash of the previous one"
        )
    document = ro_crate.crate(found, told)
    if out is not None:
        artifacts = [path for path, artifact in members(found).items() if artifact.is_inside]
        _copy(project, [*artifacts, *told], out)
    target = (out or project.root) / ro_crate.METADATA
    return [_write(target, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")]


def _export_openlineage(project: Project, out: Path | None, _key: Path | None) -> list[Path]:
    from flows.lineage.formats import openlineage

    found = openlineage.events(ledger.read(project.ledger))
    if not found:
        raise ExportError("no run is recorded: run the chain first (make run)")
    if out is None and openlineage.server():
        openlineage.post(found)
        return []
    return [_write(out or project.root / _EVENTS, openlineage.lines(found).encode())]


def _export_slsa(project: Project, out: Path | None, key: Path | None) -> list[Path]:
    from flows.lineage.formats import slsa

    models = slsa.model_folders(_current(project), project.root)
    if not models:
        raise ExportError("no stage has made a model folder yet")
    written = []
    for result, model in models:
        folder = project.root / model.path
        sha256 = {f.relative_to(folder).as_posix(): project.hasher.sha256(f) for f in project.files_of(folder)}
        document = slsa.statement(result, model, sha256)
        if key is not None:
            document = slsa.envelope(document, key)
        target = (out or project.root / _PROVENANCE) / f"{model.path}.intoto.json"
        written.append(_write(target, slsa.encode(document)))
    return written


def _current(project: Project) -> list[Result]:
    """The stages' results, where the folder holds what dvc.lock says; every file is hashed anew."""
    found = results(ledger.read(project.ledger), read_lock(project.root))
    changed = [path for path, artifact in members(found).items() if project.name_of(path) != artifact.md5]
    if changed:
        names = ", ".join(changed)
        raise ExportError(f"the folder does not match dvc.lock ({names}): update it (dvc pull; dvc repro)")
    return found


def _copy(project: Project, paths: list[str], folder: Path) -> None:
    for path in paths:
        place = project.root / path
        for file in project.files_of(place) if place.is_dir() else [place]:
            target = folder / file.relative_to(project.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _write(target: Path, content: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.partial")
    aside.write_bytes(content)
    aside.replace(target)
    return target


_FORMATS: Final[Mapping[str, Callable[[Project, Path | None, Path | None], list[Path]]]] = {
    "openlineage": _export_openlineage,
    "ro-crate": _export_ro_crate,
    "slsa": _export_slsa,
}
