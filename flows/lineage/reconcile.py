"""Ties what DVC locked to the runs that made it, by ``locked`` records in the ledger."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flows.lineage import ledger
from flows.lineage.ledger import Record
from flows.lineage.lock import Entry, LockError, read_lock
from stages.common import run_record

RAN, RESTORED, CACHED, OBSERVED = "ran", "restored", "cached", "observed"
_REWRITTEN_SECONDS: Final = 2.0  # longest that dvc.lock is taken to be in the middle of being written


def record_stage(project: Path, stage: str, outcome: str, flow_run: str | None) -> None:
    """Record what DVC has locked for a stage that was just brought up to date.

    Args:
        project: the DVC project.
        stage: the stage's address (``finetune@salf-1``).
        outcome: ``ran``, ``restored`` or ``cached``, as DVC said.
        flow_run: the Prefect run's id.

    Raises:
        LedgerError: the ledger cannot be read.
        LockError: dvc.lock cannot be read.
        OSError: the ledger cannot be written.
    """
    entry = _entry(project, stage)
    if entry is None:
        return
    records = ledger.read(run_record.ledger_of(project))
    if outcome == RAN:
        _append(project, stage, entry, unclaimed_run(records, stage), RAN, flow_run)
    elif outcome == RESTORED:
        _append(project, stage, entry, maker(records, stage, entry), RESTORED, flow_run)
    elif outcome == CACHED:
        _catch_up(project, records, stage, entry, flow_run)
    else:
        raise ValueError(f"no outcome of DVC's: {outcome!r}")


def record_all(project: Path) -> list[str]:
    """Record every stage of dvc.lock whose entry differs from its newest record; returns their names.

    Raises:
        LedgerError: the ledger cannot be read.
        LockError: dvc.lock cannot be read.
        OSError: the ledger cannot be written.
    """
    entries = read_lock(project)
    records = ledger.read(run_record.ledger_of(project))
    return [stage for stage, entry in entries.items() if _catch_up(project, records, stage, entry, None)]


def _entry(project: Path, stage: str) -> Entry | None:
    """What dvc.lock says of a stage that was just brought up to date.

    DVC rewrites the file in place: while a stage that runs beside this one ends, it is cut short for a moment.
    """
    patience = time.monotonic() + _REWRITTEN_SECONDS
    while True:
        try:
            entry = read_lock(project).get(stage)
        except LockError:
            if time.monotonic() > patience:
                raise
            entry = None
        if entry is not None or time.monotonic() > patience:
            return entry
        time.sleep(0.05)


def newest_locked(records: Sequence[Record], stage: str) -> Record | None:
    """The newest ``locked`` record of a stage."""
    return next((r for r in reversed(records) if r["kind"] == "locked" and r["stage"] == stage), None)


def unclaimed_run(records: Sequence[Record], stage: str) -> str | None:
    """The newest run of a stage in the project itself, if it ended well and no ``locked`` record claims it."""
    starts = (r for r in reversed(records) if r["kind"] == "start" and r["stage"] == stage and not r["temporary"])
    newest = next((start["run"] for start in starts), None)
    well = any(r["kind"] == "end" and r["run"] == newest and r["status"] == 0 for r in records)
    claimed = any(r["kind"] == "locked" and r["run"] == newest for r in records)
    return newest if well and not claimed else None


def maker(records: Sequence[Record], stage: str, entry: Entry) -> str | None:
    """The run that first made what an entry names: DVC restores only what ran before."""
    made = (r["run"] for r in records if r["kind"] == "locked" and r["stage"] == stage and r["lock"] == entry)
    return next((run for run in made if run is not None), None)


def _catch_up(project: Path, records: Sequence[Record], stage: str, entry: Entry, flow_run: str | None) -> bool:
    newest = newest_locked(records, stage)
    if newest is not None and newest["lock"] == entry:
        return False
    if run := unclaimed_run(records, stage):
        _append(project, stage, entry, run, RAN, flow_run)
    elif run := maker(records, stage, entry):
        _append(project, stage, entry, run, RESTORED, flow_run)
    else:
        _append(project, stage, entry, None, OBSERVED, flow_run)
    return True


def _append(project: Path, stage: str, entry: Entry, run: str | None, outcome: str, flow_run: str | None) -> None:
    facts = {"run": run, "stage": stage, "outcome": outcome, "lock": entry, "flow_run": flow_run}
    run_record.append(run_record.ledger_of(project), "locked", facts)
