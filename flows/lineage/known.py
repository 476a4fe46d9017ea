"""Everything that is known to have been made: by dvc.lock, by the ledger, by git's history of dvc.lock."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.lineage import history
from flows.lineage.artifacts import folder_name, named, read_manifest
from flows.lineage.ledger import Record
from flows.lineage.lock import Entry, read_lock
from flows.lineage.project import Project, is_folder


@dataclass(frozen=True)
class Known:
    """A stage's lock entry and where it was found (``dvc.lock``, ``record 12``, ``commit 1a2b3c4``)."""

    stage: str
    entry: Entry
    source: str


class Universe:
    """All known lock entries, the likeliest first; git's history is read when the rest does not suffice."""

    def __init__(self, project: Project, records: Sequence[Record]) -> None:
        self.project = project
        self.records = records
        self.lock = read_lock(project.root)
        self._past: list[Known] | None = None
        self._manifests: dict[str, dict[str, str]] = {}

    def entries(self) -> Iterator[Known]:
        """Yield the entries: dvc.lock, the ledger from its end, commits from the newest."""
        yield from (Known(stage, entry, "dvc.lock") for stage, entry in self.lock.items())
        for record in reversed(self.records):
            if record["kind"] == "locked":
                yield Known(record["stage"], record["lock"], f"record {record['seq']}")
        yield from self._history()

    def makers(self, path: str, name: str) -> list[Known]:
        """The entries that made what had this path and name: one, or all that filled parts of a folder."""
        for known in self.entries():
            for out, made in named(known.entry, "outs"):
                if (out == path and made == name) or self._contains(out, made, path, name):
                    return [known]
        return self._parts(path, name)

    def named(self, name: str) -> list[tuple[Known, str]]:
        """Entries and paths of outputs whose name begins so."""
        found = []
        for known in self.entries():
            found += [(known, out) for out, made in named(known.entry, "outs") if made.startswith(name)]
        return found

    def inside(self, name: str) -> tuple[Known, str] | None:
        """The entry and the path of a file inside a cached folder whose name begins so."""
        for known in self.entries():
            for out, made in named(known.entry, "outs"):
                for path, md5 in self._manifest(made).items():
                    if md5.startswith(name):
                        return known, f"{out}/{path}"
        return None

    def _history(self) -> list[Known]:
        if self._past is None:
            self._past = [
                Known(stage, entry, f"commit {commit[:12]}")
                for commit in history.commits_of_lock(self.project.root)
                for stage, entry in history.entries_at(self.project.root, commit).items()
            ]
        return self._past

    def _contains(self, out: str, made: str, path: str, name: str) -> bool:
        if not path.startswith(f"{out}/"):
            return False
        return self._manifest(made).get(path.removeprefix(f"{out}/")) == name

    def _manifest(self, name: str) -> dict[str, str]:
        if name not in self._manifests:
            self._manifests[name] = (read_manifest(self.project.cache, name) or {}) if is_folder(name) else {}
        return self._manifests[name]

    def _parts(self, path: str, name: str) -> list[Known]:
        """The entries below a folder that together, at one time, were exactly that folder."""
        for source, entries in self._snapshots():
            manifest: dict[str, str] = {}
            makers = []
            for stage, entry in entries.items():
                for out, made in named(entry, "outs"):
                    if out.startswith(f"{path}/"):
                        inner = out.removeprefix(f"{path}/")
                        files = self._manifest(made) if is_folder(made) else {"": made}
                        manifest |= {f"{inner}/{file}" if file else inner: md5 for file, md5 in files.items()}
                        makers.append(Known(stage, entry, source))
            if manifest and folder_name(manifest) == name:
                return makers
        return []

    def _snapshots(self) -> Iterator[tuple[str, dict[str, Entry]]]:
        """What stood beside each other: in dvc.lock now, after every record, at every commit."""
        yield "dvc.lock", self.lock
        # DVC leaves the entry of a stage in dvc.lock that dvc.yaml no longer has.
        yield "dvc.lock", {stage: entry for stage, entry in self.lock.items() if stage in self.project.stages}
        states: list[tuple[str, dict[str, Entry]]] = []
        for record in self.records:
            if record["kind"] == "locked":
                before = states[-1][1] if states else {}
                states.append((f"record {record['seq']}", before | {record["stage"]: record["lock"]}))
        yield from reversed(states)
        commits: dict[str, dict[str, Entry]] = {}
        for known in self._history():
            commits.setdefault(known.source, {})[known.stage] = known.entry
        yield from commits.items()
