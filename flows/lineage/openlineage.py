"""OpenLineage events of the stages' runs: from the ledger, and live to a server while a flow works.

The server is the one that ``OPENLINEAGE_URL`` names (with ``OPENLINEAGE_ENDPOINT`` and ``OPENLINEAGE_API_KEY`` as
the specification's other clients read them).
The library's client object is not used on purpose: it adds the repository's remote address, which may
hold a token, and copies the API key into the environment that stages inherit.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    DatasetFacet,
    JobFacet,
    RunFacet,
    dataset_version_dataset,
    error_message_run,
    execution_parameters_run,
    job_type_job,
    parent_run,
    processing_engine_run,
    tags_run,
)
from openlineage.client.serde import Serde
from openlineage.client.transport.http import HttpConfig, HttpTransport

from flows.lineage.export import artifacts, parameters
from flows.lineage.history import read_lock
from flows.lineage.ledger import Ledger
from salf.errors import UserError
from salf.ledger import End, LockedPath, LockEntry, Start

NAMESPACE: Final = "salf"
PRODUCER: Final = "urn:salf:flows"
_FLOW: Final = "salf"
_URL: Final = "OPENLINEAGE_URL"
_TAGS: Final = {"commit", "branch", "dirty", "seed"}

_log = logging.getLogger(__name__)


def emit(state: RunState, run: Start, project: Path, error: str | None = None, outcome: str | None = None) -> None:
    """Tell the configured server about a stage that a flow runs, at the time it happens; without a server do nothing.

    A ``COMPLETE`` names the inputs and outputs in the project's dvc.lock. An event that cannot be delivered costs
    a warning in the log, never the run.
    """
    if not server():
        return
    entry = read_lock(project).get(run.stage) if state is RunState.COMPLETE else None
    try:
        post([_event(state, run, run.at or _now(), entry, error, outcome)])
    except UserError as fault:
        _log.warning("OpenLineage event not delivered: %s", fault)


def events(ledger: Ledger) -> list[RunEvent]:
    """Return the events of all runs in the ledger, in its order.

    A run without an end whose stage started again later was killed: ``ABORT``. Without a later start it may be
    active: it has a ``START`` only. A result that was taken from DVC's cache is no run.
    """
    entries = {locked.run: locked.lock for stage in ledger.locked.values() for locked in stage}
    found = []
    active: dict[str, Start] = {}
    for record in ledger.records:
        if isinstance(record, Start):
            if killed := active.pop(record.stage, None):
                found.append(_event(RunState.ABORT, killed, record.at, None))
            active[record.stage] = record
            found.append(_event(RunState.START, record, record.at, entries.get(record.run)))
        elif isinstance(record, End) and (start := ledger.starts.get(record.run)):
            if active.get(start.stage) is start:
                del active[start.stage]
            if record.status == 0:
                found.append(_event(RunState.COMPLETE, start, record.at, entries.get(record.run)))
            else:
                found.append(_event(RunState.FAIL, start, record.at, None, f"exited with {record.status}"))
    return found


def server() -> str | None:
    """The address of the configured server."""
    return os.environ.get(_URL) or None


def post(found: Iterable[RunEvent]) -> None:
    """Send events to the configured server."""
    settings: dict[str, Any] = {"url": server(), "endpoint": os.environ.get("OPENLINEAGE_ENDPOINT", "api/v1/lineage")}
    if key := os.environ.get("OPENLINEAGE_API_KEY"):
        settings["auth"] = {"type": "api_key", "apiKey": key}
    try:
        transport = HttpTransport(HttpConfig.from_dict(settings))
        for event in found:
            transport.emit(event)
    except Exception as fault:  # the library passes on whatever its HTTP stack raises
        # The address may hold a password, and the fault's text the address.
        raise UserError(f"the server of {_URL} refused it ({type(fault).__name__})") from None


def lines(found: Iterable[RunEvent]) -> str:
    """The events as JSON lines."""
    return "".join(Serde.to_json(event) + "\n" for event in found)


def _event(
    state: RunState, run: Start, at: str, entry: LockEntry | None, error: str | None = None, outcome: str | None = None
) -> RunEvent:
    entry = entry or LockEntry()
    outs = entry.outs if state is RunState.COMPLETE else []
    return RunEvent(
        eventType=state,
        eventTime=at,
        producer=PRODUCER,
        run=Run(str(uuid.UUID(run.run)), _run_facets(run, entry, error, outcome)),
        job=Job(NAMESPACE, run.stage, {"jobType": _job_type("TASK")}),
        inputs=[InputDataset(NAMESPACE, one.shown, facets=_version(one)) for one in artifacts(entry.deps)],
        outputs=[OutputDataset(NAMESPACE, one.shown, facets=_version(one)) for one in artifacts(outs)],
    )


def _job_type(kind: str) -> JobFacet:
    return job_type_job.JobTypeJobFacet("BATCH", "DVC", kind, producer=PRODUCER)


def _version(artifact: LockedPath) -> dict[str, DatasetFacet]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(f"md5:{artifact.md5}", producer=PRODUCER)}


def _run_facets(run: Start, entry: LockEntry, error: str | None, outcome: str | None) -> dict[str, RunFacet]:
    facets: dict[str, RunFacet] = {}
    if run.flow_run:
        flow = parent_run.Run(runId=str(uuid.UUID(run.flow_run)))
        facets["parent"] = parent_run.ParentRunFacet(flow, parent_run.Job(NAMESPACE, _FLOW), producer=PRODUCER)
    if engine := run.versions.get("dvc"):
        facets["processing_engine"] = processing_engine_run.ProcessingEngineRunFacet(engine, "DVC", producer=PRODUCER)
    if values := parameters(entry):
        one = execution_parameters_run.ExecutionParameter
        facets["executionParameters"] = execution_parameters_run.ExecutionParametersRunFacet(
            [one(key=name, value=_text(value)) for name, value in values.items()], producer=PRODUCER
        )
    tags = run.model_dump(include=_TAGS, exclude_unset=True) | ({"outcome": outcome} if outcome else {})
    if tags:
        fields = [tags_run.TagsRunFacetFields(key, _text(value), "DVC") for key, value in tags.items()]
        facets["tags"] = tags_run.TagsRunFacet(fields, producer=PRODUCER)
    if error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(error, "python", producer=PRODUCER)
    return facets


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
