"""What differs between two commits or experiments: parameters, data, code, metrics, plans."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows.lineage import history
from flows.lineage.artifacts import cache_path, named, overlap, read_manifest
from flows.lineage.changes import Change, compare_values, leaves
from flows.lineage.lock import Entry, plain, read_lock
from flows.lineage.project import Project, is_folder

HERE = "workspace"
_PLAN = "freeze_plan.json"
_SECTIONS = ("params", "data", "code", "metrics", "plans", "artifacts")


class State:
    """The project at a commit, or as it lies here."""

    def __init__(self, project: Project, name: str) -> None:
        """Resolve the name.

        Raises:
            RevisionError: it is no commit, branch, tag or experiment.
        """
        self.project = project
        self.name = name
        self.commit = None if name == HERE else history.resolve(project.root, name)
        self.lock: dict[str, Entry] = (
            read_lock(project.root) if self.commit is None else history.entries_at(project.root, self.commit)
        )

    def read(self, path: str) -> str | None:
        """A text file that git has, or (of an output) the cache; ``None``: neither does."""
        if self.commit is not None:
            in_git = history.file_at(self.project.root, self.commit, path)
            return in_git if in_git is not None else self._from_cache(path)
        file = self.project.root / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    @property
    def outs(self) -> dict[str, str]:
        """Path → name of everything that stages made."""
        return {path: name for entry in self.lock.values() for path, name in named(entry, "outs")}

    @property
    def sources(self) -> dict[str, str]:
        """Path → name of what stages read and none made."""
        outs = self.outs
        deps = {path: name for entry in self.lock.values() for path, name in named(entry, "deps")}
        return {path: name for path, name in deps.items() if not any(overlap(path, out) for out in outs)}

    def _from_cache(self, path: str) -> str | None:
        for out, name in self.outs.items():
            if out == path:
                return _text(cache_path(self.project.cache, name))
            if path.startswith(f"{out}/") and is_folder(name):
                md5 = (read_manifest(self.project.cache, name) or {}).get(path.removeprefix(f"{out}/"))
                return _text(cache_path(self.project.cache, md5)) if md5 else None
        return None


def diff(project: Project, old: str, new: str) -> dict[str, Any]:
    """Return what differs: lists of lines under ``params``, ``data``, ``code``, ``metrics``, ``plans``, ``artifacts``.

    Args:
        project: the project, open.
        old: a commit, branch, tag or experiment, or ``workspace``.
        new: another.

    Raises:
        RevisionError: one of them does not exist.
    """
    a, b = State(project, old), State(project, new)
    files = {path for stage in project.stages.values() for path in stage.params}
    metrics = {out for out in a.outs.keys() | b.outs.keys() if Path(out).suffix == ".json" and _uncached(project, out)}
    code, data = _sources(a, b)
    return {
        "from": {"name": old, "commit": a.commit},
        "to": {"name": new, "commit": b.commit},
        "params": [str(change) for file in sorted(files) for change in _compare_yaml(a, b, file)],
        "data": data,
        "code": code,
        "metrics": [str(change) for file in sorted(metrics) for change in _compare_json(a, b, file, "metric")],
        "plans": [str(change) for file in _plans(a, b) for change in _compare_json(a, b, file, "plan")],
        "artifacts": [str(change) for change in compare_values(a.outs, b.outs, "artifact")],
    }


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    lines = []
    for section in _SECTIONS:
        if answer[section]:
            lines += [f"{section}:", *(f"  {line}" for line in answer[section])]
    same = f"{answer['from']['name']} and {answer['to']['name']} do not differ"
    return "\n".join(lines) or same


def _sources(a: State, b: State) -> tuple[list[str], list[str]]:
    """Code and data that differ; where git tells which files do, they are named."""
    changed: dict[str, list[str]] = {"code": [], "data": []}
    old, new = a.sources, b.sources
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) == new.get(path):
            continue
        change = compare_values({path: old[path]} if path in old else {}, {path: new[path]} if path in new else {}, "")
        kind = "code" if _is_code(a.project.root / path) else "data"
        changed[kind].append(f"{path} {change[0].text}")
    commits = [state.commit for state in (a, b)]
    if commits[0] is not None:
        files = history.changed_files(a.project.root, commits[0], commits[1], sorted({"dvc.yaml", *old, *new}))
        changed["code"] += [f"git: {line}" for line in files or [] if _is_code(a.project.root / line[2:])]
    return changed["code"], changed["data"]


def _is_code(place: Path) -> bool:
    return place.suffix in {".py", ".yaml", ".j2", ".css", ".lock"} or (
        place.is_dir() and any(file.suffix == ".py" for file in place.rglob("*.py"))
    )


def _uncached(project: Project, path: str) -> bool:
    return any(stage.outs.get(path) is False for stage in project.stages.values())


def _plans(a: State, b: State) -> list[str]:
    folders = {out for out in a.outs.keys() | b.outs.keys() if a.read(f"{out}/{_PLAN}") or b.read(f"{out}/{_PLAN}")}
    files = {out for out in a.outs.keys() | b.outs.keys() if Path(out).name == _PLAN}
    # Every fine-tuned model carries a copy of the plan: the plan's own stage speaks for them.
    own = {folder for folder in folders if "models" not in Path(folder).parts}
    return sorted({f"{folder}/{_PLAN}" for folder in own} | files)


def _compare_yaml(a: State, b: State, file: str) -> list[Change]:
    return compare_values(_yaml(a.read(file)), _yaml(b.read(file)), "parameter")


def _compare_json(a: State, b: State, file: str, kind: str) -> list[Change]:
    return compare_values(_json(a.read(file)), _json(b.read(file)), kind)


def _yaml(content: str | None) -> dict[str, Any]:
    try:
        return leaves(plain(YAML(typ="safe", pure=True).load(content or "")))
    except YAMLError:
        return {}


def _json(content: str | None) -> dict[str, Any]:
    try:
        return leaves(json.loads(content)) if content else {}
    except ValueError:
        return {}


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
