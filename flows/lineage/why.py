"""Lists changes: of a stage and upstream since it last ran, and between the freeze plans of two commits."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dvc.api
from dvc.exceptions import DvcException

from flows.graph import StageNode, select
from flows.lineage.known import Universe
from flows.lineage.project import NotFoundError, Project, plain
from salf.errors import UserError
from salf.ledger import LockEntry, Start

HERE = "workspace"
_PLAN = "data/plan/freeze_plan.json"
_LONGEST = 120  # characters of a value that are shown


@dataclass(frozen=True)
class Change:
    """One difference; the command has no name."""

    kind: str  # command, parameter, input, output or plan
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.text}" if self.name else f"{self.kind}: {self.text}"


def why(universe: Universe, stage: str) -> dict[str, Any]:
    """Return what changed since a stage last ran.

    ``changes`` are its own, ``upstream`` those of every stage that it reads, nearest last; ``last_run`` is the
    newest recorded run that made its entry; ``newest_start`` is its newest run, even if it failed or was killed.
    """
    stages, ledger = universe.project.stages, universe.ledger
    if stage not in stages:
        raise NotFoundError(f"no stage {stage!r} in dvc.yaml; there are: {', '.join(stages)}")
    above = [node.name for node in select(list(stages.values()), [stage])[:-1]]
    last, newest = _last_run(universe, stage), ledger.newest_start(stage)
    end = ledger.end(newest.run) if newest else None
    return {
        "stage": stage,
        "changes": _changes(universe, stage),
        "upstream": {name: found for name in above if (found := _changes(universe, name))},
        "last_run": {"at": last.at, "run": last.run, "commit": last.commit} if last else None,
        "newest_start": {"at": newest.at, "run": newest.run, "status": end and end.status} if newest else None,
    }


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    lines = []
    if last := answer["last_run"]:
        lines.append(f"{answer['stage']} last ran at {last['at']}, commit {last['commit']}")
    newest = answer["newest_start"]
    if newest and newest["status"] != 0:
        failed = f"failed (exit {newest['status']})"
        lines.append(f"its newest run, of {newest['at']}, {failed if newest['status'] else 'was killed or is active'}")
    if not answer["changes"] and not answer["upstream"]:
        return "\n".join([*lines, f"nothing changed: {answer['stage']} is up to date"])
    lines += answer["changes"]
    for stage, changes in answer["upstream"].items():
        lines += [f"upstream, {stage}:", *(f"  {change}" for change in changes)]
    return "\n".join(lines)


def changes_since(project: Project, declared: StageNode, entry: LockEntry) -> list[Change]:
    """Return what changed in command, parameters and inputs since the entry was locked."""
    command = Change("command", "", f"was `{entry.cmd}`, is `{declared.command}`")
    found = [command] if entry.cmd != declared.command else []
    found += _compare(_parameters(entry.params), _parameters(plain(declared.params)), "parameter")
    return found + _compare(entry.inputs, _present(project, declared.reads), "input")


def diff(project: Project, old: str, new: str) -> dict[str, Any]:
    """Compare the freeze plans of two revisions (a commit, branch, tag, experiment or ``workspace``)."""
    commits = [None if name == HERE else project.commit(name) for name in (old, new)]
    before, after = (_plan(project, commit) for commit in commits)
    return {
        "from": {"name": old, "commit": commits[0]},
        "to": {"name": new, "commit": commits[1]},
        "plans": [str(change) for change in _compare(before, after, "plan")],
    }


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into dotted name → value; lists stay whole."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _changes(universe: Universe, stage: str) -> list[str]:
    project, declared = universe.project, universe.project.stages[stage]
    entry = universe.lock.get(stage)
    if entry is None:
        return ["it never ran to its end here"]
    last = _last_run(universe, stage)
    commit = last.commit if last else None
    lines = []
    outputs = _compare(entry.outputs, _present(project, declared.outputs), "output")
    for change in [*changes_since(project, declared, entry), *outputs]:
        lines.append(str(change))
        if change.kind == "input" and commit and (files := project.changed_files(commit, change.name)):
            lines.append(f"  since commit {commit[:12]}: {', '.join(files)}")
    return lines


def _last_run(universe: Universe, stage: str) -> Start | None:
    ledger, entry = universe.ledger, universe.lock.get(stage)
    locked = ledger.newest_locked(stage)
    run = ledger.unclaimed_run(stage, entry) if entry else None
    return ledger.start(run or (locked.run if locked else None))


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], kind: str) -> list[Change]:
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            found.append(Change(kind, name, f"is new: {_shown(new[name])}"))
        elif name not in new:
            found.append(Change(kind, name, f"is gone, was {_shown(old[name])}"))
        elif old[name] != new[name]:
            found.append(Change(kind, name, f"was {_shown(old[name])}, is {_shown(new[name])}"))
    return found


def _present(project: Project, paths: Sequence[str]) -> dict[str, str]:
    """Path → hash of what is there now."""
    return {path: name for path in paths if (name := project.name_of(path))}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _parameters(params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → value; names from another file than params.yaml begin with the file's."""
    found: dict[str, Any] = {}
    for file, values in params.items():
        found |= leaves(values) if file == "params.yaml" else {f"{file}:{k}": v for k, v in leaves(values).items()}
    return found


def _plan(project: Project, commit: str | None) -> dict[str, Any]:
    """A plan's values by dotted name: from the workspace, git or DVC's cache; empty: no plan."""
    try:
        return leaves(json.loads(dvc.api.read(_PLAN, repo=str(project.root), rev=commit)))
    except (FileNotFoundError, DvcException):
        return {}
    except ValueError as error:
        raise UserError(f"{_PLAN}: damaged JSON: {error}") from None
