"""Where something came from: its stage, the run that made it, and all inputs down to raw data and base model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.lineage.artifacts import cache_path, files_below, named, read_manifest
from flows.lineage.known import Known, Universe
from flows.lineage.ledger import Record
from flows.lineage.lock import Entry
from flows.lineage.project import is_folder
from flows.lineage.reconcile import unclaimed_run

_RUN_FACTS = (
    "run",
    "command",
    "seed",
    "commit",
    "branch",
    "dirty",
    "dirty_files_sha256",
    "detached",
    "shallow",
    "flow_run",
    "flow_run_name",
    "versions",
    "machine",
)
_BASE_FACTS = ("name", "origin", "source", "revision", "weights_sha256")
_CODE = {".py", ".j2", ".css", ".lock"}
_SHORTEST_HASH = 6
_SHA256_LENGTH = 64


class NotFoundError(Exception):
    """Nothing that is known answers to what was asked for."""


@dataclass(frozen=True)
class Subject:
    """What was asked for.

    Attributes:
        known: the lock entry that made it.
        path: the artifact, or the file in one; ``None``: the stage as a whole.
        name: DVC's name of it.
        remark: what the reader should know about how it was found; mostly empty.
    """

    known: Known
    path: str | None = None
    name: str | None = None
    remark: str = ""


def lineage(universe: Universe, asked: str) -> dict[str, Any]:
    """Return the lineage of a stage, a path or a hash as JSON-like values.

    ``nodes`` holds a node per lock entry, what was asked for first, and every node before what it
    reads for the first time. Under ``inputs`` a node says what made each input (``made_by``: ids of
    nodes), or what it is (``kind``: ``code`` or ``data``) where no stage made it.

    Raises:
        NotFoundError: nothing is known of it.
    """
    subject = find(universe, asked)
    ids: list[tuple[Known, str]] = []
    nodes: list[dict[str, Any]] = []

    def visit(known: Known) -> str:
        for seen, identifier in ids:
            if (seen.stage, seen.entry) == (known.stage, known.entry):
                return identifier
        taken = any(seen.stage == known.stage for seen, _ in ids)
        identifier = f"{known.stage} ({known.source})" if taken else known.stage
        ids.append((known, identifier))
        node = _node(universe, known, identifier)
        nodes.append(node)
        for path, name in named(known.entry, "deps"):
            made_by = [visit(maker) for maker in universe.makers(path, name)]
            kind = "artifact" if made_by else _kind(universe.project.place(path))
            node["inputs"].append({"path": path, "name": name, "kind": kind, "made_by": made_by})
        return identifier

    visit(subject.known)
    return {"asked": asked, "path": subject.path, "name": subject.name, "remark": subject.remark, "nodes": nodes}


def find(universe: Universe, asked: str) -> Subject:
    """Find what a stage's name, a path or a hash stands for.

    Raises:
        NotFoundError: nothing; says what was tried.
    """
    if asked in universe.lock:
        return Subject(Known(asked, universe.lock[asked], "dvc.lock"))
    place = Path(asked) if Path(asked).exists() else universe.project.root / asked
    if place.exists():
        return _by_content(universe, place)
    if subject := _gone(universe, asked):
        return subject
    if len(asked) >= _SHORTEST_HASH and set(asked.removesuffix(".dir")) <= set("0123456789abcdef"):
        if subject := _by_hash(universe, asked):
            return subject
        raise NotFoundError(f"{asked}: unknown hash: not in dvc.lock, the ledger or any commit")
    raise NotFoundError(f"{asked}: not a stage that ran, a file, a folder or a hash")


def text(answer: dict[str, Any]) -> str:
    """The lineage for a reader: a block per node."""
    lines = []
    if answer["path"]:
        lines.append(f"{answer['path']}  {answer['name']}")
    if answer["remark"]:
        lines.append(f"note: {answer['remark']}")
    for node in answer["nodes"]:
        lines += ["", *_block(node)] if lines else _block(node)
    return "\n".join(lines)


def _by_content(universe: Universe, place: Path) -> Subject:
    """What lies at a path is known by its bytes, wherever it lies; the path only helps to say what is wrong."""
    project = universe.project
    here = place.parent.resolve() / place.name  # the last step may be a link into the cache
    inside = here.is_relative_to(project.root)
    path = here.relative_to(project.root).as_posix() if inside else None
    if place.is_dir():
        name = project.hasher.of_folder(here, project.files_of(here) if inside else files_below(here))
    else:
        name = project.hasher.md5(place)
    if path is not None and len(makers := universe.makers(path, name)) == 1:
        return Subject(makers[0], path, name)
    if found := universe.named(name):
        known, out = found[0]
        return Subject(known, out, name, f"{place} has the content of {out}")
    if not place.is_dir() and (within := universe.inside(name)):
        known, file = within
        return Subject(known, file, name, f"{place} has the content of {file}")
    made_here = path is not None and any(path == out for e in universe.lock.values() for out, _ in named(e, "outs"))
    why = "it was changed since its stage made it" if made_here else "no stage made it"
    raise NotFoundError(
        f"{place}: unknown hash {name}: not in dvc.lock, the ledger or any commit; {why}{_nearest(universe, place)}"
    )


def _nearest(universe: Universe, place: Path) -> str:
    """Which known folder shares most files with an unknown one."""
    if not place.is_dir():
        return ""
    here = {universe.project.hasher.md5(file) for file in files_below(place)}
    best, where = 0, ""
    for known in universe.entries():
        for out, name in named(known.entry, "outs"):
            manifest = read_manifest(universe.project.cache, name) if is_folder(name) else None
            shared = len(here & set(manifest.values())) if manifest else 0
            if shared > best:
                best, where = shared, f"{out} of {known.stage} ({known.source})"
    return f"; {best} of its {len(here)} different files are also in {where}" if best else ""


def _gone(universe: Universe, path: str) -> Subject | None:
    """An artifact that dvc.lock names and that is not here."""
    for stage, entry in universe.lock.items():
        for out, name in named(entry, "outs"):
            if out == path.rstrip("/"):
                return Subject(Known(stage, entry, "dvc.lock"), out, name, "not in the workspace; dvc pull brings it")
    return None


def _by_hash(universe: Universe, digest: str) -> Subject | None:
    if found := universe.named(digest):
        known, out = found[0]
        name = next(name for path, name in named(known.entry, "outs") if path == out)
        return Subject(known, out, name, "" if known.source == "dvc.lock" else f"known from {known.source}")
    if within := universe.inside(digest):
        known, file = within
        return Subject(known, file, digest, "" if known.source == "dvc.lock" else f"known from {known.source}")
    if len(digest) == _SHA256_LENGTH:
        return _by_sha256(universe, digest)
    return None


def _by_sha256(universe: Universe, digest: str) -> Subject | None:
    """Model cards and plans name weights by SHA-256: look for it in what lies here."""
    project = universe.project
    for stage, entry in universe.lock.items():
        for out, name in named(entry, "outs"):
            place = project.root / out
            files = project.files_of(place) if place.is_dir() else [place] if place.is_file() else []
            for file in files:
                path = file.relative_to(project.root).as_posix()
                if project.hasher.sha256(file) == digest:
                    return Subject(Known(stage, entry, "dvc.lock"), path, name, f"SHA-256 of {path}")
                if file.name == "base.json" and _facts(file).get("weights_sha256") == digest:
                    return Subject(Known(stage, entry, "dvc.lock"), out, name, f"SHA-256 of the weights in {out}")
    return None


def _node(universe: Universe, known: Known, identifier: str) -> dict[str, Any]:
    run = _run(universe.records, known)
    outcome = next((r["outcome"] for r in reversed(universe.records) if _locks(r, known)), None)
    node: dict[str, Any] = {
        "id": identifier,
        "stage": known.stage,
        "source": known.source,
        "outcome": outcome,
        "command": known.entry.get("cmd"),
        "params": known.entry.get("params") or {},
        "run": run,
        "outputs": [{"path": path, "name": name} for path, name in named(known.entry, "outs")],
        "inputs": [],
    }
    if base := _base_model(universe, known.entry):
        node["base_model"] = base
    return node


def _run(records: Sequence[Record], known: Known) -> dict[str, Any] | None:
    """The newest recorded run that made exactly this; where DVC locked it unrecorded, the run that ended last."""
    name = next((r["run"] for r in reversed(records) if _locks(r, known) and r["run"]), None)
    if name is None and known.source == "dvc.lock" and not any(_locks(r, known) for r in records):
        name = unclaimed_run(records, known.stage)
    start = next((r for r in records if r["kind"] == "start" and r["run"] == name), None)
    if start is None:
        return None
    end = next((r for r in records if r["kind"] == "end" and r["run"] == name), None)
    facts = {key: start.get(key) for key in _RUN_FACTS}
    ended = {"ended": end["at"], "status": end["status"], "seconds": end["seconds"]} if end else {"ended": None}
    return facts | {"started": start["at"], "record": start["seq"]} | ended


def _locks(record: Record, known: Known) -> bool:
    return record["kind"] == "locked" and record["stage"] == known.stage and record["lock"] == known.entry


def _base_model(universe: Universe, entry: Entry) -> dict[str, Any] | None:
    """What a base model folder says of its origin, read from the cache: the workspace may have changed."""
    for _, name in named(entry, "outs"):
        manifest = (read_manifest(universe.project.cache, name) or {}) if is_folder(name) else {}
        if "base.json" in manifest:
            facts = _facts(cache_path(universe.project.cache, manifest["base.json"]))
            return {key: facts.get(key) for key in _BASE_FACTS}
    return None


def _facts(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _kind(place: Path) -> str:
    """Whether what no stage made is code or data."""
    holds_code = place.is_dir() and any(file.suffix in _CODE for file in place.rglob("*"))
    return "code" if holds_code or place.suffix in _CODE or ".schema" in place.suffixes else "data"


def _block(node: dict[str, Any]) -> list[str]:
    lines = [f"{node['id']}", f"  command   {node['command']}"]
    for file, values in node["params"].items():
        lines.append(f"  params    {file}: {json.dumps(values, ensure_ascii=False)}")
    lines += _run_lines(node["run"], node["outcome"])
    if base := node.get("base_model"):
        lines.append(f"  base      {base['name']}, from {base['origin']}, weights sha256 {base['weights_sha256']}")
    lines += [f"  made      {out['path']}  {out['name']}" for out in node["outputs"]]
    for made in node["inputs"]:
        origin = f"made by {', '.join(made['made_by'])}" if made["made_by"] else made["kind"]
        lines.append(f"  from      {made['path']}  {made['name']}  ({origin})")
    return lines


def _run_lines(run: dict[str, Any] | None, outcome: str | None) -> list[str]:
    if run is None:
        return ["  run       not recorded: what DVC locked is all that is known"]
    seed = f", seed {run['seed']}" if run["seed"] is not None else ""
    restored = "; since then restored from the cache" if outcome == "restored" else ""
    flow = f"{run['flow_run_name']} ({run['flow_run']})" if run["flow_run"] else "none, DVC alone"
    return [
        f"  run       {run['run']}{seed}{restored}",
        f"  time      {run['started']} to {run['ended'] or 'unknown'}",
        f"  code      {_code(run)}",
        f"  flow run  {flow}",
        f"  versions  {', '.join(f'{name} {version}' for name, version in run['versions'].items())}",
        f"  machine   {_machine(run['machine'])}",
    ]


def _code(run: dict[str, Any]) -> str:
    if run["commit"] is None:
        return "no commit: not in git, or nothing committed yet"
    where = "detached head" if run["detached"] else f"branch {run['branch']}"
    state = f"changed files, sha256 {run['dirty_files_sha256']}" if run["dirty"] else "clean"
    return f"{run['commit']} ({where}{', shallow clone' if run['shallow'] else ''}), {state}"


def _machine(machine: dict[str, Any]) -> str:
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_bytes'] / 2**30:.1f} GiB"]
    return ", ".join(filter(None, [machine["system"], *parts, *machine["accelerators"]]))
