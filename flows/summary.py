"""What a run shows: tables and text, built without a server."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flows.durations import duration
from flows.graph import StageNode
from flows.stage_run import StageRun

_PICTURES: Final = {".svg": "image/svg+xml", ".png": "image/png"}
_NOT_REACHED = "not reached"
_SHARE = re.compile(r": \S+/\S+ .*\((\d{1,3})%\), ")


def stage_rows(graph: Sequence[StageNode], runs: Sequence[StageRun], failed: str | None = None) -> list[dict[str, str]]:
    """One row per stage: what happened, how long it took, what it is for.

    Args:
        graph: the stages of this flow run, in order.
        runs: those that ended well.
        failed: name of the stage that failed.
    """
    done = {run.name: run for run in runs}
    rows = []
    for node in graph:
        run = done.get(node.name)
        what = run.outcome.value if run else ("failed" if node.name == failed else _NOT_REACHED)
        took = duration(run.seconds) if run else ""
        rows.append({"stage": node.name, "outcome": what, "took": took, "what it does": node.description})
    return rows


def counts_line(runs: Sequence[StageRun]) -> str:
    """``3 ran, 1 restored, 8 cached in 2 min 5 s``; says so when nothing had to be done."""
    outcomes = [run.outcome.value for run in runs]
    took = duration(sum(run.seconds for run in runs))
    if set(outcomes) <= {"cached"}:
        return f"nothing had to be done: all {len(outcomes)} stages are up to date ({took})"
    parts = [f"{outcomes.count(name)} {name}" for name in ("ran", "restored", "cached") if name in outcomes]
    return f"{', '.join(parts)} in {took}"


def share_done(line: str) -> float | None:
    """The per cent in a stage's progress line (``trace: 12/96 examples (12%), 3.1 examples/s, ...``)."""
    found = _SHARE.search(line)
    return min(float(found[1]), 100.0) if found else None


def metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Flatten nested metrics into rows of a dotted name and a value; lists are left out."""
    return [{"metric": name, "value": _shown(value)} for name, value in _leaves(metrics, ())]


def plots(node: StageNode, project: Path) -> list[Path]:
    """The pictures among a stage's outputs, those inside folders too, by path."""
    places = [project / path for path in node.outputs]
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return sorted(file for file in files if file.suffix in _PICTURES)


def data_url(picture: Path) -> str:
    """A picture as an address that holds all of it."""
    return f"data:{_PICTURES[picture.suffix]};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def page_text(path: str, project: Path) -> str:
    """Markdown that says where a page lies and how to open it; browsers follow no link from http to a file.

    Args:
        path: of the page, relative to the project.
        project: the folder that holds ``dvc.yaml``.
    """
    page = project.resolve() / path
    return (
        f"`{path}` is on the machine that ran this flow. Open it there with this address:\n\n"
        f"```\n{page.as_uri()}\n```\n\n"
        f"or copy the file from there:\n\n```\n{page}\n```\n"
    )


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows that share their keys; no rows: an empty text."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = [_row(columns), _row(["---"] * len(columns))]
    lines += [_row([row[column] for column in columns]) for row in rows]
    return "\n".join(lines)


def artifact_key(*names: str) -> str:
    """A key as Prefect allows it: lower-case letters, digits and single dashes."""
    text = "-".join(names).lower().replace("+", "-and-")
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in text).split())


def _leaves(value: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key in value for leaf in _leaves(value[key], (*path, str(key)))]
    return [] if isinstance(value, list) else [(".".join(path), value)]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
