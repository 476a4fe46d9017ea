"""Checks whether everything matches its record. All content is hashed again; DVC's own state is not trusted.

DVC's status compares times and sizes where it can, so it may miss damage to a file or to the cache.
"""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.lineage import history
from flows.lineage.known import Universe
from flows.lineage.ledger import Ledger
from flows.lineage.project import UNREADABLE, Hasher, Project, is_folder, overlap
from flows.lineage.why import changes_since
from salf.answer_folder import is_answer_side
from salf.errors import UserError
from salf.files import git
from salf.ledger import FOLDER, LEDGER, Head, LockedPath, LockEntry

_SKIPPED: Final = {".git", ".dvc", ".venv", ".work", ".prefect", "__pycache__"}
_WEIGHTS: Final = ".safetensors"
_UNRECORDED: Final = "ran, and is not recorded yet: python -m flows.lineage record"


class BusyError(UserError):
    """A run is at work in the project: what is read now would not match."""


class Mismatch(BaseModel):
    """One thing that is not what it should be, and where: a path or a stage."""

    kind: str  # ledger, lock, artifact, hidden, cache, stale, shards or unknown model
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.text}"


class Report(BaseModel):
    """Mismatches, notes, how much was checked, and the ledger's newest record."""

    accepted: set[str] = Field(default=set(), exclude=True)  # stages
    ok: bool = True
    mismatches: list[Mismatch] = []
    notes: list[str] = []
    checked: Counter[str] = Counter()
    head: Head | None = None

    def wrong(self, kind: str, where: str, text: str) -> None:
        """Add a mismatch; one of dvc.lock that was accepted is a note."""
        mismatch = Mismatch(kind=kind, where=where, text=text)
        if kind == "lock" and where in self.accepted:
            self.notes.append(f"accepted: {mismatch}")
        else:
            self.ok = False
            self.mismatches.append(mismatch)

    def text(self) -> str:
        """The report for a reader."""
        lines = [str(mismatch) for mismatch in self.mismatches] + [f"note: {note}" for note in self.notes]
        counts = ", ".join(f"{count} {what}" for what, count in self.checked.items())
        found = f"{len(self.mismatches)} mismatches" if self.mismatches else "everything matches its record"
        return "\n".join([*lines, f"checked {counts or 'nothing: no stage has run'}: {found}"])


def verify(
    project: Project, pinned_head: str | None = None, whole_cache: bool = False, accepted: Collection[str] = ()
) -> Report:
    """Check ledger, lock, workspace, cache, and the shards of models.

    Args:
        project: the project, open.
        pinned_head: the hash of a record (or its first digits) that the ledger must still hold.
        whole_cache: also hash what older runs left in DVC's cache.
        accepted: stages whose entry in dvc.lock may be lost or differ from the records; a note says so.

    Raises:
        BusyError: a run is at work, or changed dvc.lock meanwhile.
    """
    before = _lock_now(project)
    report = Report(accepted=set(accepted))
    _check(project, pinned_head, whole_cache, report)
    if _lock_now(project) != before:
        raise BusyError(f"{history.LOCK_FILE} changed while it was verified: a run was at work; verify again")
    return report


def _lock_now(project: Project) -> bytes | None:
    """The bytes of dvc.lock, while no DVC writes in the project."""
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        for one in json.loads((project.root / ".dvc/tmp/rwlock").read_bytes())["write"].values():
            if psutil.pid_exists(one["pid"]):
                raise BusyError(f"{one['cmd']} (process {one['pid']}) is at work here: verify when it has ended")
    file = project.root / history.LOCK_FILE
    return file.read_bytes() if file.is_file() else None


def _check(project: Project, pinned_head: str | None, whole_cache: bool, report: Report) -> None:
    universe = Universe(project, _check_ledger(project, pinned_head, report))
    present = _check_present(universe, report)
    for stage, entry in present.items():
        report.checked["stages"] += 1
        if stage in universe.lock:
            _check_lock(universe, stage, entry, report)
        _check_outputs(project, stage, entry, report)
    for stage, entry in present.items():
        if stage in project.stages:
            _check_inputs(universe, stage, entry, report)
    for pointer, entry in project.added.items():
        _check_outputs(project, pointer, entry, report)
    _check_hidden(project, report)
    _check_cache(project, [*present.values(), *project.added.values()], whole_cache, report)
    _check_models(project, universe, report)
    _check_commits(universe, report)


def check_shards(model: Path, base: Path, hasher: Hasher) -> list[str]:
    """Return what is wrong: a frozen unit that is not the base's byte for byte, or a trained one that is."""
    try:
        run = _Trained.model_validate_json((model / "run.json").read_bytes())
    except (OSError, ValidationError):
        return ["run.json is damaged or of another version: the frozen layers are unknown"]
    if is_answer_side(model):  # what was trained, and nothing of the base
        held = {file.name: hasher.digest(file, "sha256") for file in model.glob(f"*{_WEIGHTS}")}
        return [] if held == run.shards else ["its weights are not those that run.json names"]
    ours, theirs = (
        {file.stem: hasher.digest(file, "sha256") for file in f.glob(f"*{_WEIGHTS}")} for f in (model, base)
    )
    faults = [f"{unit} is missing" for unit in sorted(theirs.keys() - ours.keys())]
    faults += [f"{unit} is not part of the base model" for unit in sorted(ours.keys() - theirs.keys())]
    for unit in sorted(ours.keys() & theirs.keys()):
        same = ours[unit] == theirs[unit]
        if unit not in run.trained_units and not same:
            faults.append(f"{unit} was frozen, but its bytes differ from the base's")
        elif unit in run.trained_units and same:
            faults.append(f"{unit} was trained, but its bytes equal the base's")
        if same == (unit in run.changed_units):
            claim = "unchanged" if unit not in run.changed_units else "changed"
            faults.append(f"{unit}: run.json says {claim}, but its bytes disagree")
        if run.shards.get(f"{unit}{_WEIGHTS}", ours[unit]) != ours[unit]:
            faults.append(f"{unit} does not have the hash that run.json gives")
    return faults


class _Trained(BaseModel):
    """The part of ``run.json``, of whatever version, that the shards are held to."""

    trained_units: set[str]  # with random layers, all that were drawn
    changed_units: set[str]  # those that saving rewrote
    shards: dict[str, str] = {}  # file → SHA-256


def _check_ledger(project: Project, pinned_head: str | None, report: Report) -> Ledger:
    place = project.ledger.name
    ledger = Ledger.read(project.ledger)
    report.head = ledger.head
    report.checked["records"] = len(ledger.hashes)
    if project.ledger != project.root / LEDGER:
        report.notes.append(f"the ledger is {project.ledger} (SALF_LEDGER)")
    for line, text in ledger.faults:
        report.wrong("ledger", f"{place} line {line}", text)
    pinned = next((n for n, known in enumerate(ledger.hashes, 1) if pinned_head and known.startswith(pinned_head)), 0)
    if pinned_head is not None and not pinned:
        report.wrong("ledger", place, f"record {pinned_head} no longer exists: the ledger was truncated or rewritten")
    for repair in ledger.repairs:
        text = f"lines {', '.join(map(str, repair.put_aside))} were damaged, and put aside on {repair.at}"
        if repair.put_aside and min(repair.put_aside) <= pinned < repair.seq:
            report.wrong("ledger", place, f"{text}, after record {pinned} was noted")
        elif repair.put_aside:
            report.notes.append(f"{place}: {text}")
        if repair.new_head:
            report.notes.append(f"{place}: its head file was lost, and written again on {repair.at}")
    if ledger.is_torn:
        report.notes.append(f"{place}: its last line is half-written; the next run puts it aside")
    report.notes += [
        f"{start.stage}: the run of {start.at} was killed, or is still active" for start in ledger.killed()
    ]
    return ledger


def _check_present(universe: Universe, report: Report) -> dict[str, LockEntry]:
    """The entries to check: of dvc.lock, and what the ledger or git say that dvc.lock and dvc.yaml lost."""
    project, ledger, lock = universe.project, universe.ledger, universe.lock
    graph = project.root / "dvc.yaml"
    if not graph.is_file() and (lock or ledger.locked):
        report.wrong("lock", "dvc.yaml", "is missing, and stages ran")
    # A stage that is gone from dvc.yaml was thrown away, if git knows of that.
    declared = history.declared_stages(graph.read_bytes() if graph.is_file() else None)
    lost = history.declared_stages(git(project.root, "show", "HEAD:./dvc.yaml")) - declared
    present = {}
    for stage in dict.fromkeys([*lock, *ledger.locked]):
        gone = not graph.is_file() or stage.partition("@")[0] in lost
        newest = ledger.newest_locked(stage)
        if stage not in project.stages and not gone:
            if stage in lock:
                report.notes.append(f"{stage} is in dvc.lock and no longer in dvc.yaml")
            continue
        if gone and graph.is_file():
            report.wrong("lock", stage, "is gone from dvc.yaml, and the last commit has it")
        if stage not in lock and newest is not None:
            report.wrong("lock", stage, f"has no entry in dvc.lock, and record {newest.seq} locked one")
            if stage not in report.accepted:
                present[stage] = ledger.record(newest).lock
        else:
            present[stage] = lock[stage]
    report.notes += [f"{stage} has not run" for stage in project.stages if stage not in present]
    return present


def _check_lock(universe: Universe, stage: str, entry: LockEntry, report: Report) -> None:
    """An entry must come from a run: one in the ledger, one that DVC remembers, or (without a record) from git."""
    project, ledger = universe.project, universe.ledger
    recorded, made = ledger.with_entry(stage, entry), ledger.made_otherwise(stage, entry)
    claimed = recorded.run if recorded else None
    run = claimed or ledger.unclaimed_run(stage, entry)
    differing = ledger.written_otherwise(run, entry)
    if differing and (claimed or not _committed(project, stage, entry)):
        report.wrong("lock", stage, f"its run wrote other content than dvc.lock says: {', '.join(differing)}")
    elif claimed:
        return
    elif made and (run is None or differing):
        text = f"outputs differ from record {made.seq} for the same inputs, and no run explains them"
        report.wrong("lock", stage, f"{text} (to accept them: verify --accept {stage})")
    elif recorded is not None:
        report.notes.append(f"{stage}: its origin is not recorded")
    elif (run and not differing) or _remembered(project.run_cache, entry):
        report.notes.append(f"{stage} {_UNRECORDED}")
    elif ledger.newest_locked(stage) is None and _committed(project, stage, entry):
        report.notes.append(f"{stage}: its origin is not recorded here; dvc.lock is as committed")
    else:
        report.wrong("lock", stage, "no record has its entry in dvc.lock: edited by hand, or made elsewhere")


def _remembered(run_cache: Path, entry: LockEntry) -> bool:
    """Whether DVC's cache of runs has exactly this entry: it ran, and was taken from there."""
    for file in run_cache.glob("*/*/*"):
        text = file.read_text(encoding="utf-8", errors="replace")
        if all(name in text for name in entry.outputs.values()):
            with contextlib.suppress(YAMLError, ValidationError):
                if history.lock_entry(YAML(typ="safe", pure=True).load(text)) == entry:
                    return True
    return False


def _committed(project: Project, stage: str, entry: LockEntry) -> bool:
    return history.entries_at(project.root, "HEAD").get(stage) == entry


def _check_outputs(project: Project, stage: str, entry: LockEntry, report: Report) -> None:
    for path, name in entry.outputs.items():
        report.checked["artifacts"] += 1
        now = project.name_of(path)
        if now is None:
            report.wrong("artifact", path, f"is not in the workspace ({stage} made it)")
        elif now != name:
            found = f"{_differences(project, path, name)}dvc.lock says {name}, here is {now}"
            report.wrong("artifact", path, f"is not what {stage} made: {found}")
        for stranger, why in project.strangers(path).items():
            report.wrong("hidden", stranger, f"{why}; {stage} did not make it so")


def _differences(project: Project, path: str, name: str) -> str:
    """The files of a folder that differ, as far as the cache knows what they were."""
    folder, manifest = project.place(path), project.manifest(name)
    if not manifest or not folder.is_dir():
        return ""
    here = {file.relative_to(folder).as_posix(): project.hasher.digest(file) for file in project.files_of(folder)}
    files = sorted({file for file, _ in here.items() ^ manifest.items()})
    files = [f"{file} ({here[file]})" if here.get(file, "").startswith(UNREADABLE) else file for file in files]
    return f"it differs in {', '.join(files[:5])}{f' and {len(files) - 5} more' if len(files) > 5 else ''}; "


def _check_hidden(project: Project, report: Report) -> None:
    """Files that a stage reads and DVC does not see; links and caches of one's own may be in an input."""
    made = [path for stage in project.stages.values() for path in stage.outs]
    read = {path for stage in project.stages.values() for path in stage.deps}
    for folder in sorted(path for path in read if not any(overlap(path, out) for out in made)):
        for path, why in project.strangers(folder).items():
            if "hidden" in why and not _SKIPPED & set(Path(path).parts):
                report.wrong("hidden", path, why)


def _check_commits(universe: Universe, report: Report) -> None:
    """Say which of the present results' commits git no longer has: its history was rewritten."""
    claimed = {lock.run for lock in map(universe.ledger.newest_locked, universe.lock) if lock is not None}
    starts = [start for start in map(universe.ledger.start, sorted(filter(None, claimed))) if start and start.commit]
    known = set((git(universe.project.root, "rev-list", "--all") or b"").decode().split()) if starts else set()
    report.notes += [
        f"{start.stage}: commit {start.commit} of record {start.seq} is in no branch any more: history was rewritten"
        for start in starts
        if known and start.commit not in known
    ]


def _check_inputs(universe: Universe, stage: str, entry: LockEntry, report: Report) -> None:
    """Report what changed since the stage ran. A changed artifact is reported once, under its own stage."""
    project = universe.project
    broken = {mismatch.where for mismatch in report.mismatches if mismatch.kind == "artifact"}
    made = {path: name for other in universe.lock.values() for path, name in other.outputs.items()}
    for change in changes_since(project, project.stages[stage], entry):
        locked = entry.inputs.get(change.name)
        reported = change.kind == "input" and any(overlap(change.name, path) for path in broken)
        if not reported or locked != made.get(change.name, locked):
            report.wrong("stale", stage, f"{change} since it ran")


def _check_cache(project: Project, entries: Sequence[LockEntry], whole: bool, report: Report) -> None:
    # dvc.lock does not say which outputs DVC keeps out of its cache; dvc.yaml does.
    uncached = {path for stage in project.stages.values() for path, cached in stage.outs.items() if not cached}
    wanted = {name for entry in entries for path, name in entry.outputs.items() if path not in uncached}
    for name in list(wanted):
        wanted |= set(project.manifest(name).values())
    if whole:
        wanted |= {file.parent.name + file.name for file in project.cache.glob("??/*")}
    for name in sorted(wanted):
        report.checked["cache objects"] += 1
        path = project.cached(name)
        if not path.is_file():
            report.wrong("cache", name, "is missing (dvc pull, or run its stage again)")
        elif (found := project.hasher.digest(path)) != name.removesuffix(FOLDER):
            _distrust(path)
            report.wrong("cache", name, f"is corrupt: its bytes are {found}; the next run makes it again")


def _distrust(cached: Path) -> None:
    """Make DVC hash an object of its cache again, and drop it if its bytes are not what its name says.

    DVC trusts what is write-protected, and remembers the hash of a file whose size and time stay. An object of
    another user's cache is left unchanged.
    """
    with contextlib.suppress(PermissionError):
        cached.chmod(cached.stat().st_mode | 0o200)
        os.utime(cached)


def _check_models(project: Project, universe: Universe, report: Report) -> None:
    stages = {path: stage for stage, entry in universe.lock.items() for path in entry.outputs}
    for folder in _model_folders(project, stages):
        path = folder.relative_to(project.root).as_posix()
        report.checked["models"] += 1
        if path not in stages:
            name = project.hasher.of_folder(folder, project.files_of(folder))
            if universe.holding(name):
                report.notes.append(f"{path}: a model of an earlier run, known by its hash")
            else:
                report.wrong("unknown model", path, f"unknown hash {name}: not in dvc.lock, the ledger or any commit")
        elif (folder / "run.json").is_file():  # a fine-tuned model
            inputs = universe.lock[stages[path]].inputs
            folders = (project.root / read for read, name in inputs.items() if is_folder(name))
            if base := next((base for base in folders if (base / "base.json").is_file()), None):
                report.checked["fine-tunes against their base"] += 1
                for fault in check_shards(folder, base, project.hasher):
                    report.wrong("shards", path, fault)


def _model_folders(project: Project, outputs: dict[str, str]) -> Iterator[Path]:
    """Folders with a configuration and weights in the top folders of the outputs (``data/``, ``reports/``)."""
    inside = [path for path in outputs if LockedPath(path=path).is_inside]
    for top in sorted({project.root / path.split("/")[0] for path in inside}):
        for file in sorted(top.rglob("config.json")) if top.is_dir() else []:
            skipped = _SKIPPED & set(file.relative_to(project.root).parts)
            if not skipped and any(file.parent.glob(f"*{_WEIGHTS}")):
                yield file.parent
