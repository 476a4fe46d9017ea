"""Verify the lineage of everything in the workspace, for schedules: a mismatch fails the run."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed

from flows.flow import exit_status, failed, refused, workspace
from flows.workspace import Workspace, WorkspaceBusyError

TIMEOUT_SECONDS = 6 * 3600.0
_MISMATCH = 1  # the verifier's exit status when something is not what it should be


@flow(name="salf-audit", timeout_seconds=TIMEOUT_SECONDS)
def audit(project: Path = Path("."), wait: bool = False) -> State[Any]:
    """Hash everything again and compare it with what was recorded; any mismatch fails this run.

    Args:
        project: the folder that holds `dvc.yaml`.
        wait: wait for another run in this folder instead of refusing.
    """
    project = project.resolve()
    try:
        with workspace(project, wait) as held:
            return _verify(held)
    except WorkspaceBusyError as error:
        return refused(str(error))


def _verify(held: Workspace) -> State[Any]:
    lines: list[str] = []
    # The verifier's package is this one, whichever folder is audited.
    here = {**held.environment, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-m", "flows.lineage", "verify", "--json"]
    status = replace(held, environment=here).run(command, lines.append, TIMEOUT_SECONDS)
    report = _report(lines)
    if report is None or status not in (0, _MISMATCH):
        for line in lines:
            get_run_logger().error(line)
        return failed(f"the verifier did not finish (status {status}): {lines[-1] if lines else 'it said nothing'}")
    return _conclude(report)


def _report(lines: Sequence[str]) -> Mapping[str, Any] | None:
    """The verifier's JSON object; lines before it are warnings of libraries."""
    start = next((number for number, line in enumerate(lines) if line.startswith("{")), len(lines))
    try:
        found = json.loads("\n".join(lines[start:]))
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("mismatches"), list) else None


def _conclude(report: Mapping[str, Any]) -> State[Any]:
    mismatches = report["mismatches"]
    checked = ", ".join(f"{number} {what}" for what, number in report.get("checked", {}).items())
    rows = [{name: str(value) for name, value in mismatch.items()} for mismatch in mismatches]
    create_table_artifact(table=rows, key="mismatches", description="What is not as it was recorded")
    if not rows:
        line = f"everything is as it was recorded ({checked})"
        if report.get("head"):  # noted down here, a later cut of the ledger can be proven (verify --head)
            line += f"; the ledger's newest record is {report['head']['sha256']}"
        create_markdown_artifact(markdown=line, key="audit", description="Outcome of the audit")
        get_run_logger().info(line)
        return Completed(message=line)
    for row in rows:
        get_run_logger().error(": ".join(row.values()))
    line = f"{len(rows)} {'mismatch' if len(rows) == 1 else 'mismatches'}: {': '.join(rows[0].values())}"
    create_markdown_artifact(markdown=line, key="audit", description="Outcome of the audit")
    return failed(line, "Mismatch")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the audit from a command line; exit status 0 fine, 1 a mismatch, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.audit",
        description=__doc__,
        epilog="example:\n  python -m flows.audit --wait    after the run that is active in this folder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wait", action="store_true", help="wait for a run that is active in this folder")
    return exit_status(audit(wait=parser.parse_args(argv).wait, return_state=True))


if __name__ == "__main__":
    sys.exit(main())
