"""The records in formats that other tools read: RO-Crate, OpenLineage, in-toto with SLSA provenance."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from flows.lineage.history import LOCK_FILE, read_lock
from flows.lineage.ledger import Ledger
from flows.lineage.project import Project
from flows.lineage.results import Result, members, results
from salf.errors import UserError
from salf.files import write_json, write_text

# The formats and their libraries are imported where they are asked for: together they take seconds.

_EVENTS: Final = Path("reports/lineage/openlineage-runs.jsonl")
_PROVENANCE: Final = Path("reports/lineage/provenance")
_FILES: Final = {
    "dvc.yaml": "the graph of stages",
    "params.yaml": "what can be set",
    LOCK_FILE: "what DVC last locked",
    "README.md": "what this is and how to run it",
}


def export(name: str, project: Project, out: Path | None = None, key: Path | None = None) -> list[Path]:
    """Write the records in one format and return the files written.

    Args:
        name: ``ro-crate``, ``openlineage`` or ``slsa``.
        project: the DVC project.
        out: where to; ``None``: the format's usual place in the project.
        key: a private key to sign with.

    Raises:
        UserError: the records or the workspace do not allow it.
        LedgerError: the ledger cannot be read.
        LockError: dvc.lock cannot be read.
    """
    if key is not None and name != "slsa":
        raise UserError(f"--key applies to slsa only, not to {name}")
    return FORMATS[name](project, out, key)


def _export_ro_crate(project: Project, out: Path | None, _key: Path | None) -> list[Path]:
    from flows.lineage import ro_crate

    found = _current(project)
    files = {path: text for path, text in _FILES.items() if (project.root / path).is_file()}
    if project.ledger.is_relative_to(project.root):
        ledger = project.ledger.relative_to(project.root).as_posix()
        files[ledger] = "every run, each line with the hash of the previous one"
    document = ro_crate.crate(found, files)
    if out is not None:
        artifacts = [path for path, artifact in members(found).items() if artifact.is_inside]
        _copy(project, [*artifacts, *files], out)
    target = (out or project.root) / ro_crate.METADATA
    write_text(target, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return [target]


def _export_openlineage(project: Project, out: Path | None, _key: Path | None) -> list[Path]:
    from flows.lineage import openlineage

    found = openlineage.events(Ledger.read(project.ledger))
    if not found:
        raise UserError("no run is recorded: run the chain first (make run)")
    if out is None and openlineage.server():
        openlineage.post(found)
        return []
    target = out or project.root / _EVENTS
    write_text(target, openlineage.lines(found))
    return [target]


def _export_slsa(project: Project, out: Path | None, key: Path | None) -> list[Path]:
    from flows.lineage import slsa

    models = slsa.model_folders(_current(project), project.root)
    if not models:
        raise UserError("no stage has made a model folder yet")
    written = []
    for result, model in models:
        folder = project.root / model.path
        sha256 = {f.relative_to(folder).as_posix(): project.hasher.sha256(f) for f in project.files_of(folder)}
        document = slsa.statement(result, model, sha256)
        written.append((out or project.root / _PROVENANCE) / f"{model.path}.intoto.json")
        write_json(written[-1], document if key is None else slsa.envelope(document, key))
    return written


def _current(project: Project) -> list[Result]:
    """The stages' results, where the folder matches dvc.lock; every file is hashed again."""
    found = results(Ledger.read(project.ledger), read_lock(project.root))
    changed = [path for path, artifact in members(found).items() if project.name_of(path) != artifact.md5]
    if changed:
        names = ", ".join(changed)
        raise UserError(f"the folder does not match dvc.lock ({names}): update it (dvc pull; dvc repro)")
    return found


def _copy(project: Project, paths: list[str], folder: Path) -> None:
    for path in paths:
        place = project.root / path
        for file in project.files_of(place) if place.is_dir() else [place]:
            target = folder / file.relative_to(project.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


FORMATS: Final[Mapping[str, Callable[[Project, Path | None, Path | None], list[Path]]]] = {
    "openlineage": _export_openlineage,
    "ro-crate": _export_ro_crate,
    "slsa": _export_slsa,
}
