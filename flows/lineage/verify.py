"""Is what lies here what was made? Everything is hashed anew; DVC's own state is not trusted.

Its status goes by times and sizes where it can, so that damage to a file or to the cache may go
unseen there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.leftovers import distrust
from flows.lineage import history, ledger
from flows.lineage.artifacts import FOLDER, cache_path, named, overlap, read_manifest
from flows.lineage.changes import changes_since
from flows.lineage.known import Universe
from flows.lineage.ledger import Record
from flows.lineage.lock import Entry, plain
from flows.lineage.project import Project, is_folder
from flows.lineage.reconcile import newest_locked, unclaimed_run
from flows.lineage.shards import check_shards, is_fine_tune, is_model

_SKIPPED = {".git", ".dvc", ".venv", ".work", ".prefect"}


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not what it should be.

    Attributes:
        kind: ``ledger``, ``lock``, ``artifact``, ``cache``, ``stale``, ``shards`` or ``unknown model``.
        where: a path or a stage.
        text: what is wrong, in words.
    """

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


@dataclass
class Report:
    """What was checked and what was found.

    Attributes:
        mismatches: what is wrong.
        notes: what is worth knowing and not wrong.
        checked: how many of which things were looked at.
    """

    mismatches: list[Mismatch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)


def verify(project: Project, pinned_head: str | None = None, whole_cache: bool = False) -> Report:
    """Check ledger, lock, workspace, cache, and the shards of models.

    Args:
        project: the project.
        pinned_head: hash of a record that was the newest once; it must still stand in the ledger.
        whole_cache: hash every object of the cache, not only those that dvc.lock names.

    Raises:
        LockError: dvc.lock cannot be read at all.
        OSError: a file cannot be read.
    """
    report = Report()
    records = _check_ledger(project, pinned_head, report)
    universe = Universe(project, records)
    # DVC leaves the entry of a stage in dvc.lock that dvc.yaml no longer has: what it made may be thrown away.
    current = {stage: entry for stage, entry in universe.lock.items() if stage in project.stages}
    report.notes += [f"{s} is in dvc.lock and no longer in dvc.yaml" for s in universe.lock if s not in current]
    for stage, entry in current.items():
        report.checked["stages"] += 1
        _check_lock(universe, stage, entry, report)
        _check_outputs(project, stage, entry, report)
    for stage, entry in current.items():
        _check_inputs(universe, stage, entry, report)
    for pointer, entry in project.added.items():
        _check_outputs(project, pointer, entry, report)
    report.notes += [f"{stage} has not run" for stage in project.stages if stage not in universe.lock]
    entries = [*current.values(), *project.added.values()]
    names = {name for entry in entries for name in _cached_names(project, entry)}
    _check_cache(project, names, whole_cache, report)
    _check_models(project, universe, report)
    return report


def _check_ledger(project: Project, pinned_head: str | None, report: Report) -> list[Record]:
    place = project.ledger.name
    faults = ledger.check_chain(project.ledger)
    report.mismatches += [Mismatch("ledger", f"{place} line {fault.line}", fault.text) for fault in faults]
    if pinned_head is not None and not ledger.holds(project.ledger, pinned_head):
        text = f"record {pinned_head} no longer exists: the ledger was truncated or rewritten"
        report.mismatches.append(Mismatch("ledger", place, text))
    try:
        records = ledger.read(project.ledger)
    except ledger.LedgerError:
        return []  # the fault is reported above
    report.checked["records"] = len(records)
    if records and not ledger.has_head(project.ledger):
        report.notes.append(f"{place} has no head file yet (the next run writes it): its newest record is not verified")
    ended = {record["run"] for record in records if record["kind"] == "end"}
    killed = [r for r in records if r["kind"] == "start" and r["run"] not in ended]
    report.notes += [f"{r['stage']}: the run of {r['at']} was killed, or is still active" for r in killed]
    return records


def _check_lock(universe: Universe, stage: str, entry: Entry, report: Report) -> None:
    """An entry must come from a run: one in the ledger, one that DVC remembers, or (no record at all) from git."""
    project, records = universe.project, universe.records
    locked = [r for r in records if r["kind"] == "locked" and r["stage"] == stage]
    recorded = next((r for r in reversed(locked) if r["lock"] == entry), None)
    if recorded is not None:
        made = _made_otherwise(locked, entry) if recorded["run"] is None else None
        if made and _committed(project, stage, entry):  # a colleague's run, say: git names who stands for it
            report.notes.append(f"{stage}: outputs differ from record {made['seq']}; they come from a commit")
        elif made:
            text = f"outputs differ from record {made['seq']} for the same inputs, and no run explains them"
            report.mismatches.append(Mismatch("lock", stage, text))
        elif recorded["run"] is None:
            report.notes.append(f"{stage}: its origin is not recorded")
    elif made := _made_otherwise(locked, entry):
        if unclaimed_run(records, stage) is None:
            text = f"outputs differ from record {made['seq']} for the same inputs: dvc.lock was edited"
            report.mismatches.append(Mismatch("lock", stage, text))
        else:
            report.notes.append(f"{stage} ran, and is not recorded yet: python -m flows.lineage record")
    elif unclaimed_run(records, stage) is not None or _remembered(project.run_cache, entry):
        report.notes.append(f"{stage} ran, and is not recorded yet: python -m flows.lineage record")
    elif newest_locked(records, stage) is None and _committed(project, stage, entry):
        report.notes.append(f"{stage}: its origin is not recorded here; dvc.lock is as committed")
    else:
        text = "no record has its entry in dvc.lock: edited by hand, or made elsewhere"
        report.mismatches.append(Mismatch("lock", stage, text))


def _made_otherwise(locked: Sequence[Record], entry: Entry) -> Record | None:
    """A run's record with the same inputs and other outputs."""

    def inputs(lock: Entry) -> list[object]:
        return [lock.get(key) for key in ("cmd", "deps", "params")]

    for record in reversed(locked):
        if record["run"] is not None and inputs(record["lock"]) == inputs(entry) and record["lock"] != entry:
            return record
    return None


def _remembered(run_cache: Path, entry: Entry) -> bool:
    """Whether DVC's cache of runs has exactly this entry: it ran, and was taken from there."""
    marks = [name for _, name in named(entry, "outs")]
    for file in run_cache.glob("*/*/*"):
        text = file.read_text(encoding="utf-8", errors="replace")
        if all(mark in text for mark in marks):
            try:
                if plain(YAML(typ="safe", pure=True).load(text)) == entry:
                    return True
            except YAMLError:
                continue
    return False


def _committed(project: Project, stage: str, entry: Entry) -> bool:
    commit = history.head(project.root)
    return commit is not None and history.entries_at(project.root, commit).get(stage) == entry


def _check_outputs(project: Project, stage: str, entry: Entry, report: Report) -> None:
    for path, name in named(entry, "outs"):
        report.checked["artifacts"] += 1
        now = project.name_of(path)
        if now is None:
            report.mismatches.append(Mismatch("artifact", path, f"is not in the workspace ({stage} made it)"))
        elif now != name:
            text = f"is not what {stage} made: {_differences(project, path, name)}dvc.lock says {name}, here is {now}"
            report.mismatches.append(Mismatch("artifact", path, text))


def _differences(project: Project, path: str, name: str) -> str:
    """Which files of a folder differ, as far as the cache knows what they were."""
    folder = project.place(path)
    manifest = read_manifest(project.cache, name) if is_folder(name) else None
    if manifest is None or not folder.is_dir():
        return ""
    here = {file.relative_to(folder).as_posix(): project.hasher.md5(file) for file in project.files_of(folder)}
    lines = [f"{file} is missing" for file in sorted(manifest.keys() - here.keys())]
    lines += [f"{file} is new" for file in sorted(here.keys() - manifest.keys())]
    lines += [f"{file} differs" for file in sorted(here.keys() & manifest.keys()) if here[file] != manifest[file]]
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return f"{', '.join(lines[:5])}{more}; "


def _check_inputs(universe: Universe, stage: str, entry: Entry, report: Report) -> None:
    """Is it what it would be if it ran now? An input that is itself no longer what was made is told once, above."""
    project = universe.project
    broken = {mismatch.where for mismatch in report.mismatches if mismatch.kind == "artifact"}
    made = {path: name for other in universe.lock.values() for path, name in named(other, "outs")}
    locked = dict(named(entry, "deps"))
    for change in changes_since(project, project.stages[stage], entry):
        told = change.kind == "input" and any(overlap(change.name, path) for path in broken)
        if not told or locked.get(change.name) != made.get(change.name, locked.get(change.name)):
            report.mismatches.append(Mismatch("stale", stage, f"{change} since it ran"))


def _cached_names(project: Project, entry: Entry) -> Iterator[str]:
    for item in entry.get("outs") or []:
        if item.get("md5") and _is_cached(project, item["path"]):
            yield item["md5"]


def _is_cached(project: Project, path: str) -> bool:
    # dvc.lock does not say which outputs DVC keeps out of its cache; dvc.yaml does.
    return all(stage.outs.get(path, True) for stage in project.stages.values())


def _check_cache(project: Project, names: set[str], whole: bool, report: Report) -> None:
    wanted = set(names)
    for name in sorted(names):
        if is_folder(name) and (manifest := read_manifest(project.cache, name)):
            wanted |= set(manifest.values())
    if whole:
        wanted |= {file.parent.name + file.name for file in project.cache.glob("??/*")}
    for name in sorted(wanted):
        report.checked["cache objects"] += 1
        path = cache_path(project.cache, name)
        if not path.is_file():
            report.mismatches.append(Mismatch("cache", name, "is missing (dvc pull, or run its stage again)"))
        elif project.hasher.md5(path) != name.removesuffix(FOLDER):
            distrust(path)
            text = f"is corrupt: its bytes are {project.hasher.md5(path)}; the next run makes it again"
            report.mismatches.append(Mismatch("cache", name, text))


def _check_models(project: Project, universe: Universe, report: Report) -> None:
    outs = {path: stage for stage, entry in universe.lock.items() for path, _ in named(entry, "outs")}
    for folder in _model_folders(project, outs):
        path = folder.relative_to(project.root).as_posix()
        report.checked["models"] += 1
        if path not in outs:
            name = project.hasher.of_folder(folder, project.files_of(folder))
            if universe.named(name):
                report.notes.append(f"{path}: a model of an earlier run, known by its hash")
            else:
                text = f"unknown hash {name}: not in dvc.lock, the ledger or any commit"
                report.mismatches.append(Mismatch("unknown model", path, text))
        elif is_fine_tune(folder):
            base = _base_of(project, universe.lock[outs[path]])
            if base is not None:
                report.checked["fine-tunes against their base"] += 1
                faults = check_shards(folder, base, project.hasher)
                report.mismatches += [Mismatch("shards", path, fault) for fault in faults]


def _model_folders(project: Project, outs: dict[str, str]) -> list[Path]:
    """Model folders in the top folders that outputs lie in (``data/``, ``reports/``)."""
    tops = {project.root / path.split("/")[0] for path in outs}
    folders = {
        file.parent
        for top in tops
        if top.is_dir()
        for file in top.rglob("config.json")
        if not _SKIPPED & set(file.relative_to(project.root).parts)
    }
    return sorted(folder for folder in folders if is_model(folder))


def _base_of(project: Project, entry: Entry) -> Path | None:
    folders = (project.root / path for path, name in named(entry, "deps") if is_folder(name))
    return next((folder for folder in folders if (folder / "base.json").is_file()), None)
