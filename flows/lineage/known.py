"""Everything that is known to have been made: by dvc.lock, by the ledger, by git's history of dvc.lock."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

from flows.lineage import history
from flows.lineage.ledger import Ledger
from flows.lineage.project import Project, folder_name, is_folder
from salf.ledger import Locked, LockEntry


@dataclass(frozen=True)
class Known:
    """A stage's lock entry and its source (``dvc.lock``, ``record 12``, ``commit 1a2b3c4``)."""

    stage: str
    entry: LockEntry
    source: str


class Universe:
    """All known lock entries, the likeliest first; git's history is read when the rest does not suffice."""

    def __init__(self, project: Project, ledger: Ledger | None = None) -> None:
        self.project = project
        self.ledger = ledger or Ledger.read(project.ledger)
        self.lock = history.read_lock(project.root)
        self.manifest = cache(project.manifest)

    def entries(self) -> Iterator[Known]:
        """Yield the entries: dvc.lock, the ledger from its end, commits from the newest."""
        yield from (Known(stage, entry, "dvc.lock") for stage, entry in self.lock.items())
        for record in reversed(self.ledger.records):
            if isinstance(record, Locked):
                yield Known(record.stage, record.lock, f"record {record.seq}")
        yield from self._history

    def makers(self, path: str, name: str) -> list[Known]:
        """The entries that made the content of this path and name: one, or all that filled parts of a folder."""
        for known, out, made in self._outputs():
            inside = path.removeprefix(f"{out}/") if path.startswith(f"{out}/") else None
            if (out, made) == (path, name) or (inside and self.manifest(made).get(inside) == name):
                return [known]
        return self._parts(path, name)

    def holding(self, name: str) -> tuple[Known, str, str] | None:
        """The entry, path and full name of the first output, or file in a cached folder, whose name begins so."""
        for known, out, made in self._outputs():
            if made.startswith(name):
                return known, out, made
        for known, out, made in self._outputs():
            for path, md5 in self.manifest(made).items():
                if md5.startswith(name):
                    return known, f"{out}/{path}", md5
        return None

    def _outputs(self) -> Iterator[tuple[Known, str, str]]:
        return ((known, out, made) for known in self.entries() for out, made in known.entry.outputs.items())

    @cached_property
    def _history(self) -> list[Known]:
        root = self.project.root
        return [
            Known(stage, entry, f"commit {commit[:12]}")
            for commit in history.commits_of_lock(root)
            for stage, entry in history.entries_at(root, commit).items()
        ]

    def _parts(self, path: str, name: str) -> list[Known]:
        """The entries below a folder that together, at one time, were exactly that folder."""
        for source, entries in self._snapshots():
            manifest: dict[str, str] = {}
            makers = []
            for stage, entry in entries.items():
                for out, made in entry.outputs.items():
                    if out.startswith(f"{path}/"):
                        inner = out.removeprefix(f"{path}/")
                        files = {f"{inner}/{file}": md5 for file, md5 in self.manifest(made).items()}
                        manifest |= files if is_folder(made) else {inner: made}
                        makers.append(Known(stage, entry, source))
            if manifest and folder_name(manifest) == name:
                return makers
        return []

    def _snapshots(self) -> Iterator[tuple[str, dict[str, LockEntry]]]:
        """Entries of one time: in dvc.lock now, after every record, at every commit."""
        yield "dvc.lock", self.lock
        # DVC leaves the entry of a stage in dvc.lock that dvc.yaml no longer has.
        yield "dvc.lock", {stage: entry for stage, entry in self.lock.items() if stage in self.project.stages}
        states: list[tuple[str, dict[str, LockEntry]]] = [("", {})]
        for record in self.ledger.records:
            if isinstance(record, Locked):
                states.append((f"record {record.seq}", states[-1][1] | {record.stage: record.lock}))
        yield from reversed(states)
        commits: dict[str, dict[str, LockEntry]] = {}
        for known in self._history:
            commits.setdefault(known.source, {})[known.stage] = known.entry
        yield from commits.items()
