"""Everything that is known to have been made: by dvc.lock, by the ledger, by git's history of dvc.lock."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain, groupby

from flows.lineage.ledger import Ledger
from flows.lineage.project import LOCK_FILE, Project, read_lock
from salf.files import git
from salf.ledger import FOLDER, LockEntry, folder_name


@dataclass(frozen=True)
class Known:
    """A stage's lock entry, read on demand, and its source (``dvc.lock``, ``record 12``, ``commit 1a2b3c4``)."""

    stage: str
    source: str
    outputs: Mapping[str, str]
    read: Callable[[], LockEntry]

    @classmethod
    def of(cls, stage: str, entry: LockEntry, source: str) -> "Known":
        """A lock entry that is at hand."""
        return cls(stage, source, entry.outputs, lambda: entry)

    @property
    def entry(self) -> LockEntry:
        """The whole entry."""
        return self.read()


class Universe:
    """All known lock entries, the likeliest first: of dvc.lock, the ledger from its end, git from its newest commit."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.ledger = Ledger(project.ledger)
        self.lock = read_lock(project.root)
        self.manifest = lru_cache(1024)(project.manifest)

    def makers(self, path: str, name: str) -> list[Known]:
        """The entries that made the content of this path and name: one, or all that filled parts of a folder."""
        if known := self._made.get(path, {}).get(name):
            return [known]
        for out in [out for out in self._made if path.startswith(f"{out}/")]:
            for made, known in self._made[out].items():
                if self.manifest(made).get(path.removeprefix(f"{out}/")) == name:
                    return [known]
        return self._parts(path, name)

    def holding(self, name: str) -> tuple[Known, str, str] | None:
        """The entry, path and full name of the first output, or file in a cached folder, whose name begins so."""
        outputs = [(known, out, made) for out, contents in self._made.items() for made, known in contents.items()]
        files = ((known, f"{out}/{p}", md5) for known, out, made in outputs for p, md5 in self.manifest(made).items())
        return next((one for one in chain(outputs, files) if one[2].startswith(name)), None)

    @cached_property
    def _made(self) -> dict[str, dict[str, Known]]:
        """Output's path → DVC's name of its content → the likeliest entry that made it."""
        made: dict[str, dict[str, Known]] = defaultdict(dict)
        for known in chain(self._locked, reversed(self._records), self._history):
            for out, name in known.outputs.items():
                made[out].setdefault(name, known)
        return made

    def present(self, stage: str) -> Known:
        """A stage's entry in dvc.lock."""
        return Known.of(stage, self.lock[stage], "dvc.lock")

    @cached_property
    def _locked(self) -> list[Known]:
        return list(map(self.present, self.lock))

    @cached_property
    def _records(self) -> list[Known]:
        locks, read = sorted(chain(*self.ledger.locked.values()), key=lambda lock: lock.seq), self.ledger.entry
        return [Known(lock.stage, f"record {lock.seq}", lock.outputs, partial(read, lock)) for lock in locks]

    @cached_property
    def _history(self) -> list[Known]:
        commits = git(self.project.root, "log", "--all", "--format=%H", "--", LOCK_FILE) or b""
        return [
            Known.of(stage, entry, f"commit {commit[:12]}")
            for commit in commits.decode().split()
            for stage, entry in self.project.entries_at(commit).items()
        ]

    def _parts(self, path: str, name: str) -> list[Known]:
        """The entries below a folder that together, at one time, were exactly that folder."""
        for makers in self._states(f"{path}/"):
            manifest: dict[str, str] = {}
            for known in makers:
                for out, made in known.outputs.items():
                    if out.startswith(f"{path}/"):
                        inner = out.removeprefix(f"{path}/")
                        files = {f"{inner}/{file}": md5 for file, md5 in self.manifest(made).items()}
                        manifest |= files if made.endswith(FOLDER) else {inner: made}
            if manifest and folder_name(manifest) == name:
                return makers
        return []

    def _states(self, folder: str) -> Iterator[list[Known]]:
        """The entries of one time with outputs below a folder: dvc.lock, each record's time, each commit."""

        def below(entries: Iterable[Known]) -> list[Known]:
            return [known for known in entries if any(out.startswith(folder) for out in known.outputs)]

        yield below(self._locked)
        # DVC leaves the entry of a stage in dvc.lock that dvc.yaml no longer has.
        yield [known for known in below(self._locked) if known.stage in self.project.stages]
        records = below(self._records)
        stages: dict[str, list[Known]] = defaultdict(list)
        for known in records:
            stages[known.stage].append(known)
        for known in reversed(records):  # from the ledger's end back, one record at a time
            yield [past[-1] for past in stages.values() if past]
            stages[known.stage].pop()
        for _, entries in groupby(below(self._history), lambda known: known.source):
            yield list(entries)
