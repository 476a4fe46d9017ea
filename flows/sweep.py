"""DVC experiments, and a sweep: a grid of parameters whose every point is an experiment, with one table of results.

A sweep leaves the workspace unchanged. DVC runs each point in a copy of its current state. All copies share the
cache, so work that two points have in common runs once. A sweep that is run again takes the points that it has.
"""

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import pandas as pd
from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed
from pydantic import Field, JsonValue

from flows import apart, report, running
from flows.graph import StageNode, matching, read_graph
from flows.lineage.why import leaves
from flows.overrides import changed, loaded, parse, read
from flows.stage_run import DVC, keeping, last_fault
from flows.workspace import Workspace
from salf.errors import BAD_INPUT, UserError, reading
from salf.files import WORK_FOLDER, git
from salf.ledger import ledger_of
from salf.metrics import Metrics, panel_rows, write_csv

# Runs an experiment in a folder of its own; -P, so that the working folder's modules do not count as top ones.
RUN_APART: Final = (sys.executable, "-P", apart.__file__, "--wait-for-lock", "exp", "run", "--temp")
# Parameters that may name a file or folder.
_PATHS: Final = ("data.path", "model.source", "evaluate.pairs", "evaluate.shift.neutral")
_EXAMPLES = """example:
  python -m flows.sweep --name budget --set plan.budget=[0.2,0.4,0.6] --set finetune.epochs=[1,2] --targets evaluate
                            six experiments, budget-1 to budget-6; then: dvc exp show, dvc exp apply budget-3
exit status: 0 done, 1 a point failed, 2 the request was refused
"""

Points = Mapping[str, Mapping[str, Any]]  # a point's name → values, or metrics
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$", max_length=100)]
Grid = Annotated[dict[running.DottedName, Annotated[list[JsonValue], Field(min_length=1)]], Field(min_length=1)]


@flow(name="salf-sweep")
def sweep(
    grid: Grid,
    name: Name = "sweep",
    project: Path = Path("."),
    targets: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    table: Path | None = None,
    wait: bool = False,
) -> State[Any]:
    """Run every combination of the grid's values as a DVC experiment and collect them in one table.

    Args:
        grid: lists of values by the dotted names of parameters, for example `{"finetune.epochs": [1, 2]}`.
        name: the experiments are called `name-1`, `name-2`, ...
        project: the folder that holds `dvc.yaml`.
        targets: stages to bring up to date, with all that they read; none: the whole graph.
        table: CSV to write of every measure of every model that the stage evaluate scored, at every point.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    combinations = itertools.product(*grid.values())
    points = {f"{name}-{n}": dict(zip(grid, values, strict=True)) for n, values in enumerate(combinations, 1)}
    try:
        with running.workspace(project, wait) as held:
            text, graph = read(project), read_graph(project)
            stages = sorted(matching(graph, targets))
            points = {name: in_a_copy(project, text, values, graph) for name, values in points.items()}
            known = _known(points, text, held)
            faults = _run_all({name: points[name] for name in points if name not in known}, text, stages, held)
            return _conclude(points, faults, held, table)
    except UserError as error:
        return running.failed(str(error), "Refused")


def in_a_copy(project: Path, text: str, values: Mapping[str, Any], graph: Sequence[StageNode]) -> dict[str, Any]:
    """Return a point's values for a copy of the project: paths that lead out of it are made absolute.

    A ``UserError`` names what the copy would lack, because git does not know it.
    """
    params, found = leaves(loaded(changed(text, values))), dict(values)
    there = {path for node in graph for path in (*node.reads, *node.params)}
    read_there = {path for path in there if Path(os.path.abspath(project / path)).is_relative_to(project)}
    for key in _PATHS:
        path = Path(str(params.get(key)))
        whole = Path(os.path.abspath(project / path))
        if whole.exists() and not path.is_absolute():
            if whole.is_relative_to(project):
                read_there.add(str(path))
            else:
                found[key] = str(whole)
    made = [Path(path) for node in graph for path in node.outputs]
    others = ("ls-files", "--others", "-z", "-x", "__pycache__", "-x", WORK_FOLDER, "--", *sorted(read_there))
    unknown = map(Path, filter(None, os.fsdecode(git(project, *others) or b"").split("\0")))
    if lost := [path for path in unknown if not any(path.is_relative_to(out) for out in made)]:
        raise UserError(
            f"not in git: {', '.join(map(str, lost[:5]))}{', ...' if len(lost) > 5 else ''}; an experiment runs in a "
            "copy of what git knows: git add (or dvc add) what it needs, or give a path outside the project"
        )
    return found


def _known(points: Points, text: str, held: Workspace) -> set[str]:
    """The points that an earlier sweep ran; other experiments of their names are refused, before hours of work."""
    there = _experiments(held)
    wanted = {name: json.dumps(loaded(changed(text, values)), default=str) for name, values in points.items()}
    known = {name for name in there if name in wanted and _content(there[name], "params") == json.loads(wanted[name])}
    present = {line.strip() for line in _dvc(["list", "--all-commits", "--name-only"], held)}
    if taken := " ".join(name for name in points if name in present - known):
        other = "an experiment of that name exists, with other parameters or on another commit"
        raise UserError(f"{other}: choose another name, or: dvc exp remove {taken}")
    return known


def _experiments(held: Workspace) -> dict[str, Any]:
    """Every experiment on the present commit by its name: its commit, ``rev``, and what DVC reads there, ``data``."""
    lines = _dvc(["show", "--json"], held)
    shown = json.loads(next(line for line in lines if line.startswith("[")))
    return {one["name"]: one["revs"][0] for revision in shown for one in revision["experiments"] or []}


def _files(experiment: Any, kind: str) -> dict[str, Any]:
    """An experiment's files of a kind, ``params`` or ``metrics``, by their path; DVC leaves lists out of metrics."""
    return dict((experiment["data"] or {}).get(kind, {}))


def _content(experiment: Any, kind: str) -> dict[str, Any]:
    """What is in these files."""
    return {key: value for file in _files(experiment, kind).values() for key, value in file.get("data", {}).items()}


def _dvc(arguments: Sequence[str], held: Workspace) -> list[str]:
    lines: list[str] = []
    status = held.run([*DVC, "exp", *arguments], lines.append)
    if status != 0:
        raise UserError(f"experiment: {last_fault(lines, status)}")
    return lines


def _run_all(points: Points, text: str, stages: list[str], held: Workspace) -> dict[str, str]:
    """Run every point; returns the faults of those that failed."""
    # DVC removes a point's folder in the end: its runs are recorded in the project's own ledger.
    held = replace(held, environment={**held.environment, "SALF_LEDGER": str(ledger_of(held.project))})
    faults = {}
    for name, values in points.items():
        point = _point.with_options(name=name, task_run_name=name)
        state = point(name, words(text, values), stages, held, return_state=True)
        if not state.is_completed():
            faults[name] = state.message or state.name or "failed"
    return faults


@task(cache_policy=NO_CACHE, persist_result=False)
def _point(name: str, options: Sequence[str], stages: Sequence[str], held: Workspace) -> Any:
    lines: list[str] = []
    command = [*RUN_APART, "--name", name, *options, *stages]
    status = held.run(command, keeping(lines, get_run_logger().info))
    if status == 0:
        return Completed(name="Kept", message=f"dvc exp apply {name}")
    return Failed(message=f"{name}: {last_fault(lines, status, 'error: ', 'ERROR: ')}")


def words(text: str, values: Mapping[str, Any]) -> list[str]:
    """Options of ``dvc exp run`` that turn the parameter file ``text`` into one with ``values``.

    Whole groups are handed over, also those with ``${``: DVC would take it for a reference.
    """
    changing = {key.partition(".")[0] for key in values}
    groups = [one for one in loaded(changed(text, values)).items() if one[0] in changing or "${" in str(one[1])]
    return [word for name, group in groups for word in ("--set-param", apart.spelled(name, group))]


def _conclude(points: Points, faults: Mapping[str, str], held: Workspace, file: Path | None) -> State[Any]:
    runs = {name: one for name, one in _experiments(held).items() if name in points}
    shown = table(points, {name: _content(one, "metrics") for name, one in runs.items()}, faults)
    if file:
        places = {name: f"{one['rev']}:{path}" for name, one in runs.items() for path in _files(one, "metrics")}
        whole = {name: json.loads(git(held.project, "show", place) or "{}") for name, place in places.items()}
        write_csv(held.project / file, measures(points, whole))
    rows: Any = shown.to_dict("records")
    create_table_artifact(table=rows, key="sweep", description="Every point of the grid, its values and its metrics")
    print(shown.to_string(index=False))
    if faults:
        return running.failed(f"{len(faults)} of {len(points)} experiments failed: {next(iter(faults.values()))}")
    line = f"{len(points)} experiments: {', '.join(points)}"
    get_run_logger().info(line)
    return Completed(message=line)


def table(points: Points, metrics: Points, faults: Mapping[str, str]) -> pd.DataFrame:
    """One row per point: its name, the grid's values, its outcome, every scalar metric."""
    rows = []
    for name, values in points.items():
        found = {key: one for key, one in leaves(metrics.get(name, {})).items() if not isinstance(one, list | dict)}
        scores = {key: f"{one:.6g}" if isinstance(one, float) else str(one) for key, one in found.items()}
        outcome = "failed" if name in faults else "kept"
        axes = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
        rows.append({"experiment": name, **axes, "outcome": outcome, **scores})
    return pd.DataFrame(rows).fillna("")


def measures(points: Points, metrics: Points) -> list[dict[str, Any]]:
    """A row per measure and model of every point that was scored, with the point's name, its numbers, what varies."""
    with reading("--table", "needs the metrics of the stage evaluate: give it with --targets"):
        scored = {name: Metrics.model_validate(metrics[name]) for name in points if name in metrics}
    first, *others = points.values()
    told = [k for k, v in first.items() if isinstance(v, int | float) or any(other[k] != v for other in others)]
    axes = {name: {key: points[name][key] for key in told} for name in scored}
    return [{"experiment": name, **axes[name], **row} for name, one in scored.items() for row in panel_rows(one)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep from a command line; returns the exit status (see ``--help``)."""
    description = "Run a grid of parameters, each point as a DVC experiment, and show all results in one table."
    parser = running.command_line("sweep", description, _EXAMPLES)
    parser.add_argument("--set", action="append", required=True, metavar="KEY=[VALUES]", help="one axis of the grid")
    parser.add_argument("--table", type=Path, metavar="FILE", help="CSV to write: every measure of every model")
    parser.add_argument("--name", default="sweep", help="name of the experiments: NAME-1, NAME-2, ...")
    given = vars(parser.parse_args(argv))
    try:
        values = parse(given.pop("set"))
    except UserError as error:
        return report(str(error), BAD_INPUT)
    grid = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    return running.run_flow(sweep, grid=grid, **given)


if __name__ == "__main__":
    sys.exit(main())
