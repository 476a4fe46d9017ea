"""The chain as a Prefect flow: one task per stage of DVC's graph, in its order.

DVC decides what has to run and keeps the results; the flow adds retries, time-outs, logs, a record
of every run and the promise that no two runs share a workspace.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.environment import stage_environment
from flows.graph import GraphError, StageNode, matching, read_graph, select
from flows.stage_run import StageFailedError, StageRun, run_stage
from flows.summary import artifact_key, counts_line, duration, markdown_table, metric_rows, stage_rows
from flows.workspace import WorkspaceBusyError, sole_run

RETRY_SECONDS = 5.0
_DESCRIPTION = "Run the chain as a Prefect flow: one task per stage of dvc.yaml, on a local server."
_EXAMPLES = """examples:
  python -m flows.pipeline                            what changed, and nothing else
  python -m flows.pipeline --targets plan             up to the plan
  python -m flows.pipeline --targets finetune         every fine-tune of the matrix, and what they need
  python -m flows.pipeline --force evaluate report    these two even when nothing changed
  python -m flows.pipeline --wait                     after the run that is working in this folder
"""


@dataclass(frozen=True)
class Workspace:
    """What every task of one flow run shares: the project, its environment, the lock to hand on."""

    project: Path
    environment: dict[str, str]
    lock: int


@flow(name="salf")
def pipeline(
    project: Path = Path("."),
    targets: Sequence[str] = (),
    force: Sequence[str] = (),
    wait: bool = False,
) -> State[Any]:
    """Bring the stages up to date.

    Args:
        project: the folder that holds ``dvc.yaml``.
        targets: stages to bring up to date, with all that they read; none: the whole graph.
        force: stages that run even when nothing changed.
        wait: wait for another run in this folder instead of refusing.
    """
    logger = get_run_logger()
    project = project.resolve()
    try:
        with sole_run(project, flow_run.name or "unnamed", wait, logger.info) as lock:
            graph = read_graph(project)
            forced = matching(graph, force)
            chosen = select(graph, [*targets, *force] if targets else [])
            return _run_all(chosen, forced, Workspace(project, stage_environment(os.environ), lock))
    except (GraphError, WorkspaceBusyError) as error:
        return _failed(str(error))


def _run_all(graph: Sequence[StageNode], forced: frozenset[str], workspace: Workspace) -> State[Any]:
    runs: list[StageRun] = []
    for node in graph:
        state = stage_task(node)(node, workspace, node.name in forced, return_state=True)
        if not state.is_completed():
            _show(graph, runs, workspace.project, failed=node.name)
            return _failed(state.message or f"{node.name}: {state.name}")
        runs.append(state.result())
    _show(graph, runs, workspace.project)
    line = counts_line(runs)
    get_run_logger().info(line)
    return Completed(message=line)


def stage_task(node: StageNode) -> "Task[[StageNode, Workspace, bool], StageRun]":
    """Return the task of one stage: its name, description and retries are the stage's own."""
    return _stage.with_options(
        name=node.name, task_run_name=node.name, description=node.description, retries=node.retries
    )


def _may_pass(_task: Any, _run: Any, state: State[Any]) -> bool:
    failure = state.data
    return not isinstance(failure, StageFailedError) or failure.passing


@task(cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=RETRY_SECONDS, retry_condition_fn=_may_pass)
def _stage(node: StageNode, workspace: Workspace, force: bool) -> Any:
    logger = get_run_logger()
    try:
        run = run_stage(node, workspace.project, workspace.environment, logger.info, force, [workspace.lock])
    except StageFailedError as error:
        # A state instead of an exception: one clear line in the log, not a traceback.
        return Failed(message=str(error), data=error)
    logger.info("%s: %s in %s", run.name, run.outcome.value, duration(run.seconds))
    _show_metrics(node, workspace.project)
    return run


def _failed(message: str) -> State[Any]:
    get_run_logger().error(message)
    return Failed(message=message)


def _show_metrics(node: StageNode, project: Path) -> None:
    for path in node.metrics:
        rows = metric_rows(json.loads((project / path).read_text(encoding="utf-8")))
        create_table_artifact(table=rows, key=artifact_key("metrics", node.name), description=f"{path} of {node.name}")


def _show(graph: Sequence[StageNode], runs: Sequence[StageRun], project: Path, failed: str | None = None) -> None:
    rows = stage_rows(graph, runs, failed)
    create_table_artifact(table=rows, key="stages", description="What this run did")
    create_markdown_artifact(markdown=markdown_table(rows), key="stages-text", description="What this run did")
    for node in graph:
        for path in node.outputs:
            if path.endswith(".html") and (project / path).exists():
                link = (project / path).as_uri()
                create_link_artifact(link=link, link_text=path, key=artifact_key("page", node.name))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the flow from a command line; returns the exit status (0 done, 1 a stage or the flow failed)."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", nargs="+", default=[], metavar="STAGE", help="only these and what they need")
    parser.add_argument("--force", nargs="+", default=[], metavar="STAGE", help="run these even when nothing changed")
    parser.add_argument("--wait", action="store_true", help="wait for a run that is working in this folder")
    arguments = parser.parse_args(argv)
    state = pipeline(targets=arguments.targets, force=arguments.force, wait=arguments.wait, return_state=True)
    if state.is_completed():
        print(state.message)
        return 0
    print(f"error: {state.message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
