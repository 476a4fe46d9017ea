"""The records in formats that other tools read: RO-Crate, OpenLineage, in-toto with SLSA provenance.

Each format describes the results: dvc.lock joined with the ledger's runs. Where DVC took a result from its cache,
its run is the earlier one that made it.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows.lineage.ledger import Ledger
from flows.lineage.project import LOCK_FILE, Project, read_lock
from flows.lineage.why import leaves
from salf.errors import UserError
from salf.files import write_json, write_text
from salf.ledger import End, Locked, LockedPath, LockEntry, Start

# The formats and their libraries are imported on use: together they take seconds.

_EVENTS: Final = Path("reports/lineage/openlineage-runs.jsonl")
_PROVENANCE: Final = Path("reports/lineage/provenance")
_FILES: Final = ("dvc.yaml", "params.yaml", LOCK_FILE, "README.md")  # of a crate, in addition to the artifacts


@dataclass(frozen=True)
class Result:
    """The present result of one stage: the record of its locking, and of the run that made it if it is known."""

    locked: Locked
    start: Start | None
    end: End | None
    parameters: dict[str, Any]  # dotted name → value, as DVC locked them
    inputs: list[LockedPath]
    outputs: list[LockedPath]


def export(name: str, project: Project, out: Path | None = None, key: Path | None = None) -> list[Path]:
    """Write the records in one format and return the files written."""
    if key is not None and name != "slsa":
        raise UserError(f"--key applies to slsa only, not to {name}")
    return FORMATS[name](project, out, key)


def results(project: Project) -> list[Result]:
    """Return the result of every stage of ``dvc.lock``, each after all that it reads.

    The folder must match ``dvc.lock``: every file is hashed again.
    """
    ledger, lock, order = Ledger(project.ledger), read_lock(project.root), list(project.stages)
    if not lock:
        raise UserError("dvc.lock names no stage: run the chain first (make run)")
    found: list[Result] = []
    unknown = []
    for stage, entry in lock.items():
        newest = ledger.newest_locked(stage)
        if newest is None or newest != ledger.with_entry(stage, entry):
            unknown.append(stage)
            continue
        runs = ledger.record(newest), ledger.start(newest.run), ledger.end(newest.run)
        found.append(Result(*runs, parameters(entry), artifacts(entry.deps), artifacts(entry.outs)))
    if unknown:
        names = ", ".join(unknown)
        raise UserError(f"dvc.lock has unrecorded entries of {names}; first run: python -m flows.lineage record")
    if changed := [path for path, artifact in members(found).items() if project.name_of(path) != artifact.md5]:
        raise UserError(f"the folder does not match dvc.lock ({', '.join(changed)}): update it (dvc pull; dvc repro)")
    return sorted(found, key=lambda one: order.index(one.locked.stage) if one.locked.stage in order else len(order))


def members(found: Sequence[Result]) -> dict[str, LockedPath]:
    """Return the artifacts of these results by path: every input and output, once."""
    seen = {artifact.path: artifact for result in found for artifact in (*result.inputs, *result.outputs)}
    return dict(sorted(seen.items()))


def artifacts(paths: Sequence[LockedPath]) -> list[LockedPath]:
    """The ``deps`` or ``outs`` of an entry; what has no hash (a web address) is left out."""
    return [path for path in paths if path.md5]


def parameters(entry: LockEntry) -> dict[str, Any]:
    """The parameters of an entry, over all its parameter files: dotted name → value."""
    return {name: value for file in entry.params.values() for name, value in leaves(file).items()}


def _export_ro_crate(project: Project, out: Path | None, _key: Path | None) -> list[Path]:
    from flows.lineage import ro_crate

    found = results(project)
    own = [project.ledger] if project.ledger.is_relative_to(project.root) else []
    places = [*(project.root / path for path in _FILES), *own]
    files = [place.relative_to(project.root).as_posix() for place in places if place.is_file()]
    document = ro_crate.crate(found, files)
    folder = out or project.root
    contained = [*(path for path, artifact in members(found).items() if artifact.is_inside), *files]
    for path in contained if out else []:
        place = project.root / path
        for file in project.files_of(place) if place.is_dir() else [place]:
            copy = folder / file.relative_to(project.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    target = folder / ro_crate.METADATA
    write_text(target, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return [target]


def _export_openlineage(project: Project, out: Path | None, _key: Path | None) -> list[Path]:
    from flows.lineage import openlineage

    found = openlineage.events(project.ledger)
    if not found:
        raise UserError("no run is recorded: run the chain first (make run)")
    target = out or project.root / _EVENTS
    write_text(target, openlineage.lines(found))
    return [target]


def _export_slsa(project: Project, out: Path | None, key: Path | None) -> list[Path]:
    from flows.lineage import slsa

    made = [(result, artifact) for result in results(project) for artifact in result.outputs if artifact.is_folder]
    models = [one for one in made if any((project.root / one[1].path).glob("*.safetensors"))]
    if not models:
        raise UserError("no stage has made a model folder yet")
    written = []
    for result, model in models:
        folder = project.root / model.path
        files = project.files_of(folder)
        sha256 = {file.relative_to(folder).as_posix(): project.hasher.digest(file, "sha256") for file in files}
        document = slsa.statement(result, model, sha256)
        written.append((out or project.root / _PROVENANCE) / f"{model.path}.intoto.json")
        write_json(written[-1], document if key is None else slsa.envelope(document, key))
    return written


FORMATS: Final[Mapping[str, Callable[[Project, Path | None, Path | None], list[Path]]]] = {
    "openlineage": _export_openlineage,
    "ro-crate": _export_ro_crate,
    "slsa": _export_slsa,
}
