"""Verify the lineage of everything in the workspace, for schedules: a mismatch fails the run."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed
from pydantic import ValidationError

from flows import running
from flows.lineage.verify import Report
from flows.workspace import Workspace
from salf.errors import UserError

TIMEOUT_SECONDS = 6 * 3600.0


@flow(name="salf-audit", timeout_seconds=TIMEOUT_SECONDS)
def audit(project: Path = Path("."), wait: bool = False) -> State[Any]:
    """Hash everything again and compare it with what was recorded; any mismatch fails this run.

    Args:
        project: the folder that holds `dvc.yaml`.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    try:
        with running.workspace(project, wait) as held:
            return _verify(held)
    except UserError as error:
        return running.refused(str(error))


def _verify(held: Workspace) -> State[Any]:
    lines: list[str] = []
    # The verifier's package is this one, whichever folder is audited.
    here = {**held.environment, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-m", "flows.lineage", "verify", "--json"]
    status = replace(held, environment=here).run(command, lines.append, TIMEOUT_SECONDS)
    start = next((number for number, line in enumerate(lines) if line.startswith("{")), len(lines))
    try:
        return _conclude(Report.model_validate_json("\n".join(lines[start:])))  # before it are warnings of libraries
    except ValidationError:
        for line in lines:
            get_run_logger().error(line)
        return running.failed(f"the verifier did not finish (status {status}): {lines[-1] if lines else 'no output'}")


def _conclude(report: Report) -> State[Any]:
    rows = [mismatch.model_dump() for mismatch in report.mismatches]
    create_table_artifact(table=rows, key="mismatches", description="What is not as it was recorded")
    if report.ok:
        checked = ", ".join(f"{number} {what}" for what, number in report.checked.items())
        line = f"everything is as it was recorded ({checked})"
        if report.head:  # noted here, a later cut of the ledger can be proven (verify --head)
            line += f"; the ledger's newest record is {report.head.sha256}"
    else:
        for mismatch in report.mismatches:
            get_run_logger().error(str(mismatch))
        count = f"{len(rows)} {'mismatch' if len(rows) == 1 else 'mismatches'}"
        line = f"{count}: {report.mismatches[0]}"
    create_markdown_artifact(markdown=line, key="audit", description="Outcome of the audit")
    if not report.ok:
        return running.failed(line, "Mismatch")
    get_run_logger().info(line)
    return Completed(message=line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the audit from a command line; exit status 0 fine, 1 a mismatch, 2 refused."""
    example = "example:\n  python -m flows.audit --wait    after the run that is active in this folder"
    parser = running.command_line(
        "audit", "Verify the lineage of everything in the workspace.", example, of_stages=False
    )
    return running.run_flow(audit, **vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
