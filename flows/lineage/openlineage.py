"""OpenLineage events of the stages' runs, from the ledger: to a file, or to a server (a flow sends each run's there).

``OPENLINEAGE_URL`` names the server; ``OPENLINEAGE_ENDPOINT`` and ``OPENLINEAGE_API_KEY`` as other clients read them.
The library's client object is not used on purpose: it adds the repository's remote address, which may hold a token,
and copies the API key into the environment that stages inherit.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from openlineage.client import facet_v2 as facets
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState, set_producer
from openlineage.client.serde import Serde
from openlineage.client.transport.http import HttpConfig, HttpTransport

from flows.lineage.export import artifacts, parameters
from flows.lineage.ledger import Ledger, read_records
from salf.errors import UserError
from salf.ledger import End, Locked, LockedPath, LockEntry, Start, ledger_of

_NAMESPACE: Final = "salf"
_FLOW: Final = "salf"
_URL: Final = "OPENLINEAGE_URL"
_TAGS: Final = {"commit", "branch", "dirty", "seed"}

_log = logging.getLogger(__name__)
set_producer("urn:salf:flows")


def send(project: Path, stage: str) -> None:
    """Send the events of a stage's newest run to the configured server; without a server do nothing.

    Events that cannot be delivered cost a warning in the log, never the run.
    """
    if not server():
        return
    try:
        ledger = ledger_of(project)
        newest = Ledger.read(ledger).newest_start(stage)
        post([event for event in events(ledger) if newest and event.run.runId == _uuid(newest.run)])
    except UserError as fault:
        _log.warning("OpenLineage events not delivered: %s", fault)


def events(ledger: Path) -> list[RunEvent]:
    """Return the events of all runs in the ledger, in its order.

    A run without an end whose stage started again later was killed: ``ABORT``. Without a later start it may be
    active: it has a ``START`` only. A result that was taken from DVC's cache is no run.
    """
    entries = {record.run: record.lock for record in read_records(ledger) if isinstance(record, Locked)}
    found, starts, active = [], dict[str, Start](), dict[str, Start]()
    for record in read_records(ledger):
        if isinstance(record, Start):
            if killed := active.get(record.stage):
                found.append(_event(RunState.ABORT, killed, record.at, None))
            starts[record.run] = active[record.stage] = record
            found.append(_event(RunState.START, record, record.at, entries.get(record.run)))
        elif isinstance(record, End) and (start := starts.get(record.run)):
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


def _event(state: RunState, run: Start, at: str, entry: LockEntry | None, error: str | None = None) -> RunEvent:
    entry = entry or LockEntry()
    outs = entry.outs if state is RunState.COMPLETE else []
    return RunEvent(
        eventType=state,
        eventTime=at,
        run=Run(_uuid(run.run), _run_facets(run, entry, error)),
        job=Job(_NAMESPACE, run.stage, {"jobType": facets.job_type_job.JobTypeJobFacet("BATCH", "DVC", "TASK")}),
        inputs=[InputDataset(_NAMESPACE, one.shown, facets=_version(one)) for one in artifacts(entry.deps)],
        outputs=[OutputDataset(_NAMESPACE, one.shown, facets=_version(one)) for one in artifacts(outs)],
    )


def _version(artifact: LockedPath) -> dict[str, facets.DatasetFacet]:
    return {"version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(f"md5:{artifact.md5}")}


def _run_facets(run: Start, entry: LockEntry, error: str | None) -> dict[str, facets.RunFacet]:
    found: dict[str, facets.RunFacet] = {}
    if run.flow_run:
        flow, job = facets.parent_run.Run(_uuid(run.flow_run)), facets.parent_run.Job(_NAMESPACE, _FLOW)
        found["parent"] = facets.parent_run.ParentRunFacet(flow, job)
    if engine := run.versions.get("dvc"):
        found["processing_engine"] = facets.processing_engine_run.ProcessingEngineRunFacet(engine, "DVC")
    if values := parameters(entry):
        kinds = facets.execution_parameters_run
        each = [kinds.ExecutionParameter(key=name, value=_text(value)) for name, value in values.items()]
        found["executionParameters"] = kinds.ExecutionParametersRunFacet(each)
    if tags := run.model_dump(include=_TAGS, exclude_unset=True):
        fields = [facets.tags_run.TagsRunFacetFields(key, _text(value), "DVC") for key, value in tags.items()]
        found["tags"] = facets.tags_run.TagsRunFacet(fields)
    if error:
        found["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(error, "python")
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _uuid(hexadecimal: str) -> str:
    return str(uuid.UUID(hexadecimal))
