"""What differs between the freeze plans of two commits or experiments; the rest is DVC's own ``diff`` commands."""

import json
from pathlib import Path
from typing import Any

from flows.lineage import history
from flows.lineage.artifacts import cache_path, named, read_manifest
from flows.lineage.changes import compare_values, leaves
from flows.lineage.lock import Entry, read_lock
from flows.lineage.project import Project, ProjectError, is_folder

HERE = "workspace"
_PLAN = "freeze_plan.json"


def diff(project: Project, old: str, new: str) -> dict[str, Any]:
    """Compare the plans of two revisions: what was added, removed or changed, by dotted name.

    Args:
        project: the project, open.
        old: a commit, branch, tag or experiment, or ``workspace``.
        new: another.

    Raises:
        RevisionError: one of them does not exist.
        ProjectError: a plan is no JSON.
    """
    commits = [None if name == HERE else history.resolve(project.root, name) for name in (old, new)]
    plans = [_plans(project, commit) for commit in commits]
    return {
        "from": {"name": old, "commit": commits[0]},
        "to": {"name": new, "commit": commits[1]},
        "plans": [
            str(change)
            for place in sorted(plans[0].keys() | plans[1].keys())
            for change in compare_values(plans[0].get(place, {}), plans[1].get(place, {}), "plan")
        ],
    }


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    same = f"the plans of {answer['from']['name']} and {answer['to']['name']} do not differ"
    return "\n".join(answer["plans"]) or same


def _plans(project: Project, commit: str | None) -> dict[str, dict[str, Any]]:
    """Every plan among the stages' outputs, by its path; the copies in model folders are left out."""
    lock: dict[str, Entry] = read_lock(project.root) if commit is None else history.entries_at(project.root, commit)
    outs = {path: name for entry in lock.values() for path, name in named(entry, "outs")}
    found = {}
    for path, name in outs.items():
        if "models" in Path(path).parts:
            continue
        place = f"{path}/{_PLAN}" if is_folder(name) else path
        if Path(place).name == _PLAN and (content := _read(project, commit, place, path, name)):
            try:
                found[place] = leaves(json.loads(content))
            except ValueError as error:
                raise ProjectError(f"{place}: damaged JSON: {error}") from None
    return found


def _read(project: Project, commit: str | None, place: str, out: str, name: str) -> str | None:
    """The plan's text: from the workspace, or (at a commit) from git or DVC's cache; ``None``: from none of them."""
    if commit is not None and (in_git := history.file_at(project.root, commit, place)) is not None:
        return in_git
    md5: str | None = name
    if is_folder(name):
        md5 = (read_manifest(project.cache, name) or {}).get(place.removeprefix(f"{out}/"))
    file = project.root / place if commit is None else cache_path(project.cache, md5) if md5 else None
    return file.read_text(encoding="utf-8") if file is not None and file.is_file() else None
