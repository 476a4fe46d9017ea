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
from pydantic import BaseModel, ValidationError

from flows.lineage.known import Universe
from flows.lineage.project import LOCK_FILE, UNREADABLE, Hasher, Project, overlap
from flows.lineage.why import changes_since
from salf.answer_folder import is_answer_side
from salf.errors import UserError
from salf.files import git
from salf.ledger import FOLDER, LEDGER, Head, LockedPath, LockEntry

_SKIPPED: Final = {".git", ".dvc", ".venv", ".work", ".prefect", "__pycache__"}
_WEIGHTS: Final = ".safetensors"


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

    ok: bool = True
    mismatches: list[Mismatch] = []
    notes: list[str] = []
    checked: Counter[str] = Counter()
    head: Head | None = None

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
    audit = _Audit(project, accepted)
    audit.check(pinned_head, whole_cache)
    if _lock_now(project) != before:
        raise BusyError(f"{LOCK_FILE} changed while it was verified: a run was at work; verify again")
    return audit.report


def _lock_now(project: Project) -> bytes | None:
    """The bytes of dvc.lock, while no DVC writes in the project."""
    with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        for one in json.loads((project.root / ".dvc/tmp/rwlock").read_bytes())["write"].values():
            if psutil.pid_exists(one["pid"]):
                raise BusyError(f"{one['cmd']} (process {one['pid']}) is at work here: verify when it has ended")
    file = project.root / LOCK_FILE
    return file.read_bytes() if file.is_file() else None


class _Trained(BaseModel):
    """The part of ``run.json``, of whatever version, that the shards are held to."""

    trained_units: set[str]  # with random layers, all that were drawn
    changed_units: set[str]  # those that saving rewrote
    shards: dict[str, str] = {}  # file → SHA-256


def check_shards(model: Path, base: Path, hasher: Hasher) -> list[str]:
    """Return what is wrong: a frozen unit that is not the base's byte for byte, or a trained one that is."""
    try:
        run = _Trained.model_validate_json((model / "run.json").read_bytes())
    except (OSError, ValidationError):
        return ["run.json is damaged or of another version: the frozen layers are unknown"]
    ours, theirs = (
        {file.stem: hasher.digest(file, "sha256") for file in f.glob(f"*{_WEIGHTS}")} for f in (model, base)
    )
    named = {name.removesuffix(_WEIGHTS): digest for name, digest in run.shards.items()}
    if is_answer_side(model):  # what was trained, and nothing of the base
        return [] if ours == named else ["its weights are not those that run.json names"]
    faults = [f"{unit} is missing" for unit in sorted(theirs.keys() - ours.keys())]
    faults += [f"{unit} is not part of the base model" for unit in sorted(ours.keys() - theirs.keys())]
    for unit in sorted(ours.keys() & theirs.keys()):
        same, claimed = ours[unit] == theirs[unit], "changed" if unit in run.changed_units else "unchanged"
        if unit not in run.trained_units and not same:
            faults.append(f"{unit} was frozen, but its bytes differ from the base's")
        elif unit in run.trained_units and same:
            faults.append(f"{unit} was trained, but its bytes equal the base's")
        if same == (claimed == "changed"):
            faults.append(f"{unit}: run.json says {claimed}, but its bytes disagree")
        if named.get(unit, ours[unit]) != ours[unit]:
            faults.append(f"{unit} does not have the hash that run.json gives")
    return faults


class _Audit:
    """One verification of a project: what is known of it, and the report that grows."""

    def __init__(self, project: Project, accepted: Collection[str]) -> None:
        self.project, self.accepted, self.report = project, accepted, Report()
        self.universe = Universe(project)
        self.ledger, self.lock = self.universe.ledger, self.universe.lock
        self.notes, self.checked = self.report.notes, self.report.checked

    def check(self, pinned_head: str | None, whole_cache: bool) -> None:
        project, added = self.project, self.project.added
        self._check_ledger(pinned_head)
        present = self._check_present()
        for stage, entry in present.items():
            self.checked["stages"] += 1
            if stage in self.lock:
                self._check_lock(stage, entry)
            self._check_outputs(stage, entry)
        for stage in present:
            if stage in project.stages:
                self._check_inputs(stage, present[stage])
        for pointer, entry in added.items():
            self._check_outputs(pointer, entry)
        self._check_hidden()
        self._check_cache([*present.values(), *added.values()], whole_cache)
        self._check_models()
        self._check_commits()

    def wrong(self, kind: str, where: str, text: str) -> None:
        """Report a mismatch; one of dvc.lock that was accepted is a note."""
        mismatch = Mismatch(kind=kind, where=where, text=text)
        if kind == "lock" and where in self.accepted:
            self.notes.append(f"accepted: {mismatch}")
        else:
            self.report.ok = False
            self.report.mismatches.append(mismatch)

    def _check_ledger(self, pinned_head: str | None) -> None:
        ledger, place = self.ledger, self.ledger.path.name
        self.report.head = ledger.head
        self.checked["records"] = len(ledger.hashes)
        if ledger.path != self.project.root / LEDGER:
            self.notes.append(f"the ledger is {ledger.path} (SALF_LEDGER)")
        for line, text in ledger.faults:
            self.wrong("ledger", f"{place} line {line}", text)
        known = enumerate(ledger.hashes, 1)
        pinned = next((number for number, one in known if pinned_head and one.startswith(pinned_head)), 0)
        if pinned_head is not None and not pinned:
            self.wrong("ledger", place, f"record {pinned_head} no longer exists: the ledger was truncated or rewritten")
        for repair in ledger.repairs:
            text = f"lines {', '.join(map(str, repair.put_aside))} were damaged, and put aside on {repair.at}"
            if repair.put_aside and min(repair.put_aside) <= pinned < repair.seq:
                self.wrong("ledger", place, f"{text}, after record {pinned} was noted")
            elif repair.put_aside:
                self.notes.append(f"{place}: {text}")
            if repair.new_head:
                self.notes.append(f"{place}: its head file was lost, and written again on {repair.at}")
        if ledger.is_torn:
            self.notes.append(f"{place}: its last line is half-written; the next run puts it aside")
        for start in ledger.killed():
            self.notes.append(f"{start.stage}: the run of {start.at} was killed, or is still active")

    def _check_present(self) -> dict[str, LockEntry]:
        """The entries to check: of dvc.lock, and what the ledger or git say that dvc.lock and dvc.yaml lost."""
        lock, locked, has_graph = self.lock, self.ledger.locked, (self.project.root / "dvc.yaml").is_file()
        if not has_graph and (lock or locked):
            self.wrong("lock", "dvc.yaml", "is missing, and stages ran")
        lost = self.project.lost_stages()  # one that git does not know either was thrown away
        present = {}
        for stage in dict.fromkeys([*lock, *locked]):
            gone = not has_graph or stage.partition("@")[0] in lost
            if stage not in self.project.stages and not gone:
                if stage in lock:
                    self.notes.append(f"{stage} is in dvc.lock and no longer in dvc.yaml")
                continue
            if gone and has_graph:
                self.wrong("lock", stage, "is gone from dvc.yaml, and the last commit has it")
            if stage in lock:
                present[stage] = lock[stage]
                continue
            newest = locked[stage][-1]
            self.wrong("lock", stage, f"has no entry in dvc.lock, and record {newest.seq} locked one")
            if stage not in self.accepted:
                present[stage] = self.ledger.entry(newest)
        self.notes += [f"{stage} has not run" for stage in self.project.stages if stage not in present]
        return present

    def _check_lock(self, stage: str, entry: LockEntry) -> None:
        """An entry must come from a run: one in the ledger, one that DVC remembers, or (without a record) from git."""
        ledger = self.ledger
        recorded, made = ledger.with_entry(stage, entry), ledger.made_otherwise(stage, entry)
        claimed = recorded.run if recorded else None
        run = claimed or ledger.unclaimed_run(stage, entry)
        differing = ledger.written_otherwise(run, entry)
        if differing and (claimed or not self._is_committed(stage, entry)):
            self.wrong("lock", stage, f"its run wrote other content than dvc.lock says: {', '.join(differing)}")
        elif claimed:
            return
        elif made and (run is None or differing):
            text = f"outputs differ from record {made.seq} for the same inputs, and no run explains them"
            self.wrong("lock", stage, f"{text} (to accept them: verify --accept {stage})")
        elif recorded is not None:
            self.notes.append(f"{stage}: its origin is not recorded")
        elif (run and not differing) or self.project.remembers(entry):
            self.notes.append(f"{stage} ran, and is not recorded yet: python -m flows.lineage record")
        elif ledger.newest_locked(stage) is None and self._is_committed(stage, entry):
            self.notes.append(f"{stage}: its origin is not recorded here; dvc.lock is as committed")
        else:
            self.wrong("lock", stage, "no record has its entry in dvc.lock: edited by hand, or made elsewhere")

    def _is_committed(self, stage: str, entry: LockEntry) -> bool:
        return self.project.entries_at("HEAD").get(stage) == entry

    def _check_outputs(self, stage: str, entry: LockEntry) -> None:
        for path, name in entry.outputs.items():
            self.checked["artifacts"] += 1
            now = self.project.name_of(path)
            if now is None:
                self.wrong("artifact", path, f"is not in the workspace ({stage} made it)")
            elif now != name:
                found = f"{self._differences(path, name)}dvc.lock says {name}, here is {now}"
                self.wrong("artifact", path, f"is not what {stage} made: {found}")
            for stranger, why in self.project.strangers(path).items():
                self.wrong("hidden", stranger, f"{why}; {stage} did not make it so")

    def _differences(self, path: str, name: str) -> str:
        """The files of a folder that differ, as far as the cache knows what they were."""
        project = self.project
        folder, manifest = project.place(path), project.manifest(name)
        if not manifest or not folder.is_dir():
            return ""
        here = {file.relative_to(folder).as_posix(): project.hasher.digest(file) for file in project.files_of(folder)}
        files = sorted({file for file, _ in here.items() ^ manifest.items()})
        files = [f"{file} ({here[file]})" if here.get(file, "").startswith(UNREADABLE) else file for file in files]
        return f"it differs in {', '.join(files[:5])}{f' and {len(files) - 5} more' if len(files) > 5 else ''}; "

    def _check_hidden(self) -> None:
        """Files that a stage reads and DVC does not see; links and caches of one's own may be in an input."""
        stages = self.project.stages.values()
        made = [path for stage in stages for path in stage.outputs]
        read = {path for stage in stages for path in stage.reads}
        for folder in sorted(path for path in read if not any(overlap(path, out) for out in made)):
            for path, why in self.project.strangers(folder).items():
                if "hidden" in why and not _SKIPPED & set(Path(path).parts):
                    self.wrong("hidden", path, why)

    def _check_commits(self) -> None:
        """Say which of the present results' commits git no longer has: its history was rewritten."""
        claimed = {lock.run for lock in map(self.ledger.newest_locked, self.lock) if lock is not None}
        starts = [start for start in map(self.ledger.start, sorted(filter(None, claimed))) if start and start.commit]
        known = set((git(self.project.root, "rev-list", "--all") or b"").decode().split()) if starts else set()
        for start in starts:
            if known and start.commit not in known:
                text = f"commit {start.commit} of record {start.seq} is in no branch any more: history was rewritten"
                self.notes.append(f"{start.stage}: {text}")

    def _check_inputs(self, stage: str, entry: LockEntry) -> None:
        """Report what changed since the stage ran. A changed artifact is reported once, under its own stage."""
        broken = {mismatch.where for mismatch in self.report.mismatches if mismatch.kind == "artifact"}
        made = {path: name for other in self.lock.values() for path, name in other.outputs.items()}
        for change in changes_since(self.project, self.project.stages[stage], entry):
            locked = entry.inputs.get(change.name)
            reported = change.kind == "input" and any(overlap(change.name, path) for path in broken)
            if not reported or locked != made.get(change.name, locked):
                self.wrong("stale", stage, f"{change} since it ran")

    def _check_cache(self, entries: Sequence[LockEntry], whole: bool) -> None:
        project = self.project
        # dvc.lock does not say which outputs DVC keeps out of its cache; dvc.yaml does.
        uncached = {path for stage in project.stages.values() for path in stage.uncached}
        wanted = {name for entry in entries for path, name in entry.outputs.items() if path not in uncached}
        wanted.update(*[project.manifest(name).values() for name in wanted])
        if whole:
            wanted |= {file.parent.name + file.name for file in project.cache.glob("??/*")}
        for name in sorted(wanted):
            self.checked["cache objects"] += 1
            path = project.cached(name)
            if not path.is_file():
                self.wrong("cache", name, "is missing (dvc pull, or run its stage again)")
            elif (found := project.hasher.digest(path)) != name.removesuffix(FOLDER):
                _distrust(path)
                self.wrong("cache", name, f"is corrupt: its bytes are {found}; the next run makes it again")

    def _check_models(self) -> None:
        project, stages = self.project, {path: stage for stage, entry in self.lock.items() for path in entry.outputs}
        for folder in _model_folders(project.root, stages):
            path = folder.relative_to(project.root).as_posix()
            self.checked["models"] += 1
            if path not in stages:
                name = project.hasher.of_folder(folder, project.files_of(folder))
                if self.universe.holding(name):
                    self.notes.append(f"{path}: a model of an earlier run, known by its hash")
                else:
                    self.wrong("unknown model", path, f"unknown hash {name}: not in dvc.lock, the ledger or any commit")
            elif (folder / "run.json").is_file():  # a fine-tuned model
                inputs = self.lock[stages[path]].inputs
                folders = (project.root / read for read, name in inputs.items() if name.endswith(FOLDER))
                if base := next((base for base in folders if (base / "base.json").is_file()), None):
                    self.checked["fine-tunes against their base"] += 1
                    for fault in check_shards(folder, base, project.hasher):
                        self.wrong("shards", path, fault)


def _distrust(cached: Path) -> None:
    """Make DVC hash an object of its cache again, and drop it if its bytes are not what its name says.

    DVC trusts what is write-protected, and remembers the hash of a file whose size and time stay. An object of
    another user's cache is left unchanged.
    """
    with contextlib.suppress(PermissionError):
        cached.chmod(cached.stat().st_mode | 0o200)
        os.utime(cached)


def _model_folders(root: Path, outputs: Collection[str]) -> Iterator[Path]:
    """Folders with a configuration and weights in the top folders of the outputs (``data/``, ``reports/``)."""
    for top in sorted({root / path.split("/")[0] for path in outputs if LockedPath(path=path).is_inside}):
        for file in sorted(top.rglob("config.json")) if top.is_dir() else []:
            skipped = _SKIPPED & set(file.relative_to(root).parts)
            if not skipped and any(file.parent.glob(f"*{_WEIGHTS}")):
                yield file.parent
