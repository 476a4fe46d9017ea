"""The chain as a Prefect flow: one task per stage of DVC's graph, in its order.

DVC decides what has to run and keeps the results. The flow adds retries, time-outs, logs and a record of every
run, and lets no two runs share a workspace.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed
from pydantic import JsonValue

from flows import report, running
from flows.graph import StageNode, matching, read_graph, select
from flows.lineage.ledger import record_stage
from flows.overrides import overridden, parse
from flows.stage_run import Outcome, StageFailedError, StageRun, run_stage
from flows.workspace import Workspace
from salf.errors import BAD_INPUT, UserError
from salf.scale.command import duration

RETRY_SECONDS = 5.0  # before the second attempt; doubled before each further one
_EXAMPLES = """examples:
  python -m flows.pipeline                            what changed, and nothing else
  python -m flows.pipeline --targets finetune         all fine-tunes of the matrix, and what they need
  python -m flows.pipeline --force evaluate report    these two even if nothing changed
  python -m flows.pipeline --set finetune.epochs=3    with another parameter, for this run only
exit status: 0 done, 1 a stage or the flow failed, 2 the request was refused, 130 interrupted
"""


@flow(name="salf")
def pipeline(
    project: Path = Path("."),
    targets: list[str] = [],  # noqa: B006 (Prefect shows the default in its form; it is never changed)
    force: list[str] = [],  # noqa: B006
    overrides: dict[running.DottedName, JsonValue] = {},  # noqa: B006
    wait: bool = False,
) -> State[Any]:
    """Bring the stages up to date.

    Args:
        project: the folder that holds `dvc.yaml`.
        targets: stages to bring up to date, with all that they read; none: the whole graph.
        force: stages that run even when nothing changed.
        overrides: parameters of this run alone, by their dotted names in `params.yaml`, for example
            `{"finetune.epochs": 3}`; the file is as before when the run ends.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    try:
        with running.workspace(project, wait) as held, overridden(project, overrides):
            graph = read_graph(project)
            forced = matching(graph, force)
            chosen = select(graph, [*targets, *force] if targets else [])
            return _run_all(chosen, forced, held)
    except UserError as error:
        return running.failed(str(error), "Refused")


def _run_all(graph: Sequence[StageNode], forced: frozenset[str], held: Workspace) -> State[Any]:
    """Run one stage after the other; after a failure start no more."""
    states: dict[str, State[Any]] = {}
    for node in graph:
        needs = [states[name] for name in node.upstream if name in states]
        task_of_stage = _stage.with_options(
            name=node.name,
            task_run_name=node.name,
            description=node.description,
            retries=node.retries,
            retry_delay_seconds=[RETRY_SECONDS * 2**n for n in range(node.retries)] or 0,
        )
        state = task_of_stage(node, held, node.name in forced, wait_for=needs, return_state=True)
        if not state.is_completed():
            return running.failed(state.message or f"{node.name}: {state.name}")
        states[node.name] = state
    line = counts_line([state.result() for state in states.values()])
    get_run_logger().info(line)
    return Completed(message=line)


def counts_line(runs: Sequence[StageRun]) -> str:
    """``3 ran, 1 restored, 8 cached in 2 min 5 s``; says so when nothing had to be done."""
    outcomes = [run.outcome for run in runs]
    took = duration(sum(run.seconds for run in runs))
    if set(outcomes) <= {Outcome.CACHED}:
        return f"nothing had to be done: all {len(outcomes)} stages are up to date ({took})"
    parts = [f"{outcomes.count(one)} {one}" for one in Outcome if one in outcomes]
    return f"{', '.join(parts)} in {took}"


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=lambda _task, _run, state: getattr(state.data, "passing", True),  # of a StageFailedError
)
def _stage(node: StageNode, held: Workspace, force: bool) -> Any:
    try:
        run = run_stage(node, held, get_run_logger().info, force)
    except StageFailedError as error:
        # A state instead of an exception: one clear line in the log, not a traceback.
        return Failed(message=str(error), data=error)
    try:
        record_stage(held.project, node.name, run.outcome.value, held.flow_run)
    except (UserError, OSError) as error:
        fault = StageFailedError(f"{node.name}: up to date, but not recorded: {error}", passing=False)
        return Failed(message=str(fault), data=fault)
    line = f"{run.outcome.value} in {duration(run.seconds)}"
    get_run_logger().info("%s: %s", node.name, line)
    return Completed(name=run.outcome.value.capitalize(), message=line, data=run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the flow from a command line; returns the exit status (see ``--help``)."""
    description = "Run the chain as a Prefect flow: one task per stage of dvc.yaml, on a local server."
    parser = running.command_line("pipeline", description, _EXAMPLES)
    parser.add_argument("--force", nargs="+", default=[], metavar="STAGE", help="run these even if nothing changed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter for this run only")
    given = vars(parser.parse_args(argv))
    try:
        given["overrides"] = parse(given.pop("set"))
    except UserError as error:
        return report(str(error), BAD_INPUT)
    return running.run_flow(pipeline, **given)


if __name__ == "__main__":
    sys.exit(main())
