"""Run a grid of parameters, each point as a DVC experiment, and show all results in one table.

The workspace is not changed. DVC runs each point in a copy of its current state. All copies share the
cache, so work that two points have in common runs once.
"""

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed, wait
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, JsonValue
from ruamel.yaml import YAML

from flows import machine
from flows.environment import with_threads
from flows.experiment import RUN_APART, ExperimentError, check_names, show
from flows.graph import GraphError, matching, read_graph
from flows.held import THREADS, Workspace, failed, refused, workspace
from flows.overrides import PARAMS_FILE, OverrideError, changed, parse
from flows.pipeline import STOP_SECONDS, ExperimentName, SideBySide, exit_status
from flows.processes import StoppedError, run_streaming
from flows.summary import markdown_table, metric_rows
from flows.workspace import WorkspaceBusyError
from salf.ledger import ledger_of

_EXAMPLES = """example:
  python -m flows.sweep --name budget --set plan.budget=[0.2,0.4,0.6] --set finetune.epochs=[1,2] --targets evaluate
                            six experiments, budget-1 to budget-6; then: dvc exp show, dvc exp apply budget-3
exit status: 0 done, 1 a point failed, 2 the request was refused
"""
_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ /+.$%*@?|-]*")

Grid = Annotated[
    dict[Annotated[str, Field(pattern=r"^[^.\s]+(\.[^.\s]+)*$")], Annotated[list[JsonValue], Field(min_length=1)]],
    Field(min_length=1),
]


@flow(name="salf-sweep", task_runner=THREADS)
def sweep(
    grid: Grid,
    name: ExperimentName = "sweep",
    project: Path = Path("."),
    targets: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    side_by_side: SideBySide = 0,
    wait: bool = False,
) -> State[Any]:
    """Run every combination of the grid's values as a DVC experiment and collect them in one table.

    Args:
        grid: lists of values by the dotted names of parameters, for example `{"finetune.epochs": [1, 2]}`.
        name: the experiments are called `name-1`, `name-2`, ...
        project: the folder that holds `dvc.yaml`.
        targets: stages to bring up to date, with all that they read; none: the whole graph.
        side_by_side: how many experiments may run at once; 0: as many as the machine allows.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    points = _points(name, grid)
    try:
        with workspace(project, wait) as held:
            text = (project / PARAMS_FILE).read_text(encoding="utf-8")
            for values in points.values():
                changed(text, values)
                words(values)
            stages = sorted(matching(read_graph(project), targets))
            check_names(list(points), project, held.environment)
            return _run_all(points, stages, held, machine.side_by_side(side_by_side))
    except (ExperimentError, GraphError, OverrideError, WorkspaceBusyError) as error:
        return refused(str(error))


def _points(name: str, grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    combinations = itertools.product(*grid.values())
    return {f"{name}-{n}": dict(zip(grid, values, strict=True)) for n, values in enumerate(combinations, 1)}


def _run_all(points: Mapping[str, Mapping[str, Any]], stages: list[str], held: Workspace, at_once: int) -> State[Any]:
    threads = None if at_once == 1 else max(1, machine.cores() // at_once)
    environment = with_threads(held.environment, threads)
    # DVC removes a point's folder in the end: its runs are recorded in the project's own ledger.
    environment["SALF_LEDGER"] = str(ledger_of(held.project))
    held = replace(held, environment=environment)
    waiting, faults, ended = list(points), dict[str, str](), 0
    running: dict[Any, str] = {}
    progress: Any = create_progress_artifact(0.0, "progress", "Experiments of this sweep that have ended")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                task_run = _point.with_options(name=name, task_run_name=name)
                running[task_run.submit(name, points[name], stages, held, return_state=False)] = name
            future: Any = next(as_completed(list(running)))
            future.wait()
            name, ended = running.pop(future), ended + 1
            if not future.state.is_completed():
                faults[name] = future.state.message or future.state.name
            update_progress_artifact(progress, 100 * ended / len(points))
    except BaseException:  # cancelled, the worker is gone, a bug: no experiment outlives its flow
        held.stop.set()
        wait(list(running), timeout=STOP_SECONDS)
        raise
    return _conclude(points, faults, held)


@task(cache_policy=NO_CACHE, persist_result=False)
def _point(name: str, values: Mapping[str, Any], stages: Sequence[str], held: Workspace) -> Any:
    logger = get_run_logger()
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        if line:
            logger.info(line)

    command = [*RUN_APART, "--name", name, *words(values), *stages]
    try:
        status = run_streaming(command, held.project, held.environment, keep, None, [held.lock], held.stop)
    except StoppedError:
        return Cancelled(message=f"{name}: stopped with its flow")
    if status == 0:
        return Completed(name="Kept", message=f"dvc exp apply {name}")
    faults = [line for line in lines if line.startswith("error: ")] or [x for x in lines if x.startswith("ERROR: ")]
    return Failed(message=f"{name}: {faults[-1].partition(': ')[2] if faults else f'DVC exited with {status}'}")


def words(values: Mapping[str, Any]) -> list[str]:
    """Options of ``dvc exp run`` that set parameters, in the grammar of Hydra's overrides.

    A mapping replaces the present one; without the deletion DVC would merge the two.

    Raises:
        OverrideError: the grammar cannot express a value.
    """
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += ["--set-param", f"~{key}"]
        found += ["--set-param", f"++{key}={_word(value, key)}"]
    return found


def _word(value: Any, key: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, str) and "${" not in value:
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ",".join(_word(item, key) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_name(name, key)}:{_word(item, key)}" for name, item in value.items()) + "}"
    raise OverrideError(f"{key} = {value!r}: cannot be passed to DVC")


def _quoted(text: str) -> str:
    """In double quotes; only backslashes before a quote or at the end need escaping."""
    escaped = re.sub(r'(\\*)"', lambda found: found[1] * 2 + '\\"', text)
    return '"' + re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped) + '"'


def _name(name: Any, key: str) -> str:
    """A mapping's key: the grammar has no quotes for keys, and reads one that looks like a number as a number."""
    read = YAML(typ="safe", pure=True).load(name) if isinstance(name, str) and _KEY.fullmatch(name) else None
    if not isinstance(read, str):
        raise OverrideError(f"{key}: the entry {name!r} cannot be passed to DVC; give it a name of letters")
    return name


def _conclude(points: Mapping[str, Mapping[str, Any]], faults: Mapping[str, str], held: Workspace) -> State[Any]:
    metrics = show(held.project, held.environment)
    rows = table(points, metrics, faults)
    create_table_artifact(table=rows, key="sweep", description="Every point of the grid, its values and its metrics")
    print(markdown_table(rows))
    if faults:
        return failed(f"{len(faults)} of {len(points)} experiments failed: {next(iter(faults.values()))}")
    line = f"{len(points)} experiments: {', '.join(points)}"
    get_run_logger().info(line)
    return Completed(message=line)


def table(
    points: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Mapping[str, Any]], faults: Mapping[str, str]
) -> list[dict[str, str]]:
    """One row per point: its name, the grid's values, every scalar metric; what failed says so.

    Args:
        points: values by parameter, by experiment.
        metrics: nested metrics by experiment.
        faults: what went wrong, by experiment.
    """
    scores = {name: {row["metric"]: row["value"] for row in metric_rows(metrics.get(name, {}))} for name in points}
    columns = list(dict.fromkeys(metric for name in points for metric in scores[name]))
    rows = []
    for name, values in points.items():
        row = {"experiment": name, **{key: json.dumps(value) for key, value in values.items()}}
        row["outcome"] = "failed" if name in faults else "kept"
        rows.append({**row, **{metric: scores[name].get(metric, "") for metric in columns}})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep from a command line; returns the exit status (see ``--help``)."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", action="append", required=True, metavar="KEY=[VALUES]", help="one axis of the grid")
    parser.add_argument("--name", default="sweep", help="name of the experiments: NAME-1, NAME-2, ...")
    parser.add_argument("--targets", nargs="+", default=[], metavar="STAGE", help="these stages and what they need")
    parser.add_argument("--side-by-side", type=int, default=0, metavar="N", help="experiments at once (0: auto)")
    parser.add_argument("--wait", action="store_true", help="wait for a run that is active in this folder")
    given = parser.parse_args(argv)
    try:
        grid = {key: value if isinstance(value, list) else [value] for key, value in parse(given.set).items()}
    except OverrideError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options = {"targets": given.targets, "side_by_side": given.side_by_side, "wait": given.wait}
    return exit_status(sweep(grid, given.name, **options, return_state=True))


if __name__ == "__main__":
    sys.exit(main())
