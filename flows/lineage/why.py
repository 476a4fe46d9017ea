"""What changed since a stage last ran: in its command, parameters, inputs and outputs, and above it."""

from collections.abc import Sequence
from typing import Any

from flows.lineage import history
from flows.lineage.artifacts import named, overlap
from flows.lineage.changes import changes_since
from flows.lineage.known import Universe
from flows.lineage.ledger import Record
from flows.lineage.reconcile import newest_locked, unclaimed_run
from flows.lineage.show import NotFoundError


def why(universe: Universe, stage: str) -> dict[str, Any]:
    """Return what changed since a stage last ran.

    ``changes`` holds its own, ``upstream`` those of every stage that it reads, nearest last;
    ``last_run`` is the start record of its newest run, if one is recorded; ``failed`` the newest
    run's end where that run failed or was killed.

    Raises:
        NotFoundError: there is no such stage.
    """
    project = universe.project
    if stage not in project.stages:
        raise NotFoundError(f"no stage {stage!r} in dvc.yaml; there are: {', '.join(project.stages)}")
    upstream = {name: found for name in _above(universe, stage) if (found := _changes(universe, name))}
    starts = [r for r in universe.records if r["kind"] == "start" and r["stage"] == stage and not r["temporary"]]
    return {
        "stage": stage,
        "changes": _changes(universe, stage),
        "upstream": upstream,
        "last_run": _last_run(universe, stage),
        "newest_start": _ending(universe.records, starts[-1]) if starts else None,
    }


def text(answer: dict[str, Any]) -> str:
    """The answer for a reader."""
    lines = []
    if answer["last_run"]:
        lines.append(f"{answer['stage']} last ran at {answer['last_run']['at']}, commit {answer['last_run']['commit']}")
    newest = answer["newest_start"]
    if newest and newest["status"] != 0:
        ended = "was killed, or is still at work" if newest["status"] is None else f"failed (exit {newest['status']})"
        lines.append(f"its newest run, of {newest['at']}, {ended}")
    if not answer["changes"] and not answer["upstream"]:
        return "\n".join([*lines, f"nothing changed: {answer['stage']} is up to date"])
    lines += [f"{change}" for change in answer["changes"]]
    for stage, changes in answer["upstream"].items():
        lines += [f"before it, {stage}:", *(f"  {change}" for change in changes)]
    return "\n".join(lines)


def _changes(universe: Universe, stage: str) -> list[str]:
    project, declared = universe.project, universe.project.stages[stage]
    entry = universe.lock.get(stage)
    if entry is None:
        return ["it never ran to its end here"]
    commit = (_last_run(universe, stage) or {}).get("commit")
    lines = []
    for change in changes_since(project, declared, entry):
        lines.append(str(change))
        if change.kind == "input" and commit and (files := history.changed_files(project.root, commit, [change.name])):
            lines.append(f"  since commit {commit[:12]}: {', '.join(files)}")
    for path, name in named(entry, "outs"):
        now = project.name_of(path)
        if now != name:
            lines.append(f"output {path}: {'is missing' if now is None else f'was {name}, is {now}'}")
    locked = dict(named(entry, "outs"))
    lines += [f"output {path}: is new" for path in declared.outs if path not in locked]
    lines += [f"output {path}: is made no more" for path in locked if path not in declared.outs]
    return lines


def _above(universe: Universe, stage: str) -> list[str]:
    """All stages that a stage reads, directly or not, the farthest first."""
    stages = universe.project.stages
    found: list[str] = []

    def visit(name: str) -> None:
        for other, declared in stages.items():
            if (
                other not in found
                and other != name
                and any(overlap(d, o) for d in stages[name].deps for o in declared.outs)
            ):
                visit(other)
                found.append(other)

    visit(stage)
    return found


def _last_run(universe: Universe, stage: str) -> Record | None:
    locked = newest_locked(universe.records, stage)
    name = unclaimed_run(universe.records, stage) or (locked["run"] if locked else None)
    return next((r for r in universe.records if r["kind"] == "start" and r["run"] == name), None)


def _ending(records: Sequence[Record], start: Record) -> dict[str, Any]:
    status = next((r["status"] for r in records if r["kind"] == "end" and r["run"] == start["run"]), None)
    return {"at": start["at"], "run": start["run"], "status": status}
