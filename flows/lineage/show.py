"""Traces an artifact's origin: its stage, the run that made it, and all inputs down to raw data and base model."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from ruamel.yaml import YAML

from flows.lineage.known import Known, Universe
from flows.lineage.project import NotFoundError

_RUN_FACTS: Final = {
    *("run", "command", "seed", "commit", "branch", "dirty", "dirty_files_sha256", "detached", "shallow"),
    *("flow_run", "flow_run_name", "versions", "machine"),
}
_ORIGIN: Final = ("name", "origin", "source", "revision", "weights_sha256")  # of a base model, in base.json
_CODE: Final = {".py", ".j2", ".css", ".lock"}
_SHORTEST_HASH: Final = 6
_SHA256_LENGTH: Final = 64


class Subject(NamedTuple):
    """The lock entry that made it, the artifact or file (``None``: the whole stage), DVC's name, how it was found."""

    known: Known
    path: str | None = None
    name: str | None = None
    remark: str = ""


def lineage(universe: Universe, asked: str) -> dict[str, Any]:
    """Return the lineage of a stage, a path or a hash: what it is, and ``nodes``, each before what it reads.

    A node is a lock entry with the newest recorded run that made it; its ``id`` is the stage, with the source where a
    stage appears twice. An input's ``kind`` is ``artifact``, ``code`` or ``data``; ``made_by`` holds ids of nodes.
    """
    subject = find(universe, asked)
    nodes: list[dict[str, Any]] = []
    visited: list[tuple[Known, str]] = []

    def visit(known: Known) -> str:
        same = [(other, identifier) for other, identifier in visited if other.stage == known.stage]
        for other, identifier in same:
            if other.entry == known.entry:
                return identifier
        visited.append((known, f"{known.stage} ({known.source})" if same else known.stage))
        nodes.append(node := _node(universe, *visited[-1]))
        for path, name in known.entry.inputs.items():
            made_by = [visit(maker) for maker in universe.makers(path, name)]
            kind = "artifact" if made_by else _kind(universe.project.place(path))
            node["inputs"].append({"path": path, "name": name, "kind": kind, "made_by": made_by})
        return str(node["id"])

    visit(subject.known)
    return {"asked": asked, "path": subject.path, "name": subject.name, "remark": subject.remark, "nodes": nodes}


def text(answer: dict[str, Any]) -> str:
    """The lineage for a reader, as YAML."""
    yaml: Any = YAML(typ="safe", pure=True)
    stream = io.StringIO()
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 4096
    yaml.dump(answer, stream)
    return stream.getvalue().rstrip()


def find(universe: Universe, asked: str) -> Subject:
    """Find the subject of a stage's name, a path or a hash."""
    if asked in universe.lock:
        return Subject(universe.present(asked))
    place = Path(asked) if Path(asked).exists() else universe.project.root / asked
    if place.exists():
        return _by_content(universe, place)
    for stage, entry in universe.lock.items():
        if name := entry.outputs.get(asked.rstrip("/")):
            remark = "not in the workspace; dvc pull brings it"
            return Subject(universe.present(stage), asked.rstrip("/"), name, remark)
    if len(asked) >= _SHORTEST_HASH and set(asked.removesuffix(".dir")) <= set("0123456789abcdef"):
        if found := universe.holding(asked):
            return Subject(*found, "" if found[0].source == "dvc.lock" else f"known from {found[0].source}")
        if len(asked) == _SHA256_LENGTH and (subject := _by_sha256(universe, asked)):
            return subject
        raise NotFoundError(f"{asked}: unknown hash: not in dvc.lock, the ledger or any commit")
    raise NotFoundError(f"{asked}: not a stage that ran, a file, a folder or a hash")


def _by_content(universe: Universe, place: Path) -> Subject:
    """Find a file or folder by its bytes, wherever it is; the path only helps to say what is wrong."""
    project = universe.project
    here = place.parent.resolve() / place.name  # the last step may be a link into the cache
    path = here.relative_to(project.root).as_posix() if here.is_relative_to(project.root) else None
    if place.is_dir():
        outside = (file for file in here.rglob("*") if file.is_file())
        name = project.hasher.of_folder(here, project.files_of(here) if path else outside)
    else:
        name = project.hasher.digest(place)
    if path is not None and len(makers := universe.makers(path, name)) == 1:
        return Subject(makers[0], path, name)
    if found := universe.holding(name):
        return Subject(*found, f"{place} has the content of {found[1]}")
    made_here = any(path in entry.outputs for entry in universe.lock.values())
    why = "it was changed since its stage made it" if made_here else "no stage made it"
    raise NotFoundError(f"{place}: unknown hash {name}: not in dvc.lock, the ledger or any commit; {why}")


def _by_sha256(universe: Universe, digest: str) -> Subject | None:
    """Model cards and plans name weights by SHA-256: look for it in the workspace."""
    project = universe.project
    for stage, entry in universe.lock.items():
        for out, name in entry.outputs.items():
            place = project.root / out
            for file in project.files_of(place) if place.is_dir() else [place] if place.is_file() else []:
                path = file.relative_to(project.root).as_posix()
                if project.hasher.digest(file, "sha256") == digest:
                    return Subject(universe.present(stage), path, name, f"SHA-256 of {path}")
                if file.name == "base.json" and _origin(file)["weights_sha256"] == digest:
                    return Subject(universe.present(stage), out, name, f"SHA-256 of the weights in {out}")
    return None


def _node(universe: Universe, known: Known, identifier: str) -> dict[str, Any]:
    """With the newest recorded run that made exactly this; if its entry is not recorded, the run that ended last."""
    ledger, stage, entry = universe.ledger, known.stage, known.entry
    recorded = ledger.with_entry(stage, entry)
    run = recorded.run or ledger.maker(stage, entry) if recorded else None
    if recorded is None and known.source == "dvc.lock":
        run = ledger.unclaimed_run(stage, entry)
    start, end = ledger.start(run), ledger.end(run)
    base = next((f for name in entry.outputs.values() if (f := universe.manifest(name).get("base.json"))), None)
    ended = {"ended": end.at, "status": end.status, "seconds": end.seconds} if end else {"ended": None}
    return {
        "id": identifier,
        "stage": stage,
        "source": known.source,
        "outcome": recorded and recorded.outcome,
        "command": entry.cmd,
        "params": entry.params,
        "run": start and start.model_dump(include=_RUN_FACTS) | {"started": start.at, "record": start.seq} | ended,
        "base_model": _origin(universe.project.cached(base)) if base else None,  # the workspace may have changed
        "outputs": [{"path": path, "name": name} for path, name in entry.outputs.items()],
        "inputs": [],
    }


def _origin(file: Path) -> dict[str, Any]:
    """Where a base model comes from, as ``base.json`` says; each fact is ``None`` in a file that cannot be read."""
    facts: Any = {}
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads(file.read_bytes())
    return {key: facts.get(key) for key in _ORIGIN}


def _kind(place: Path) -> str:
    """Whether what no stage made is code or data."""
    holds_code = place.is_dir() and any(file.suffix in _CODE for file in place.rglob("*"))
    return "code" if holds_code or place.suffix in _CODE or ".schema" in place.suffixes else "data"
