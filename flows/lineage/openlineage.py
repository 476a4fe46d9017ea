"""OpenLineage events of the stages' runs, from the ledger: to a file, or to a server (a flow sends each run's there).

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
from pathlib import Path
from typing import Any, Final

from openlineage.client import facet_v2 as facets
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.serde import Serde
from openlineage.client.transport.http import HttpConfig, HttpTransport

from flows.lineage.export import artifacts, parameters
from flows.lineage.ledger import Ledger, read_records
from salf.errors import UserError
from salf.ledger import End, Locked, LockedPath, LockEntry, Start, ledger_of

NAMESPACE: Final = "salf"
PRODUCER: Final = "urn:salf:flows"
_FLOW: Final = "salf"
_URL: Final = "OPENLINEAGE_URL"
_TAGS: Final = {"commit", "branch", "dirty", "seed"}

_log = logging.getLogger(__name__)


def send(project: Path, stage: str) -> None:
    """Send the events of a stage's newest run to the configured server; without a server do nothing.

    Events that cannot be delivered cost a warning in the log, never the run.
    """
    if not server():
        return
    try:
        ledger = ledger_of(project)
        newest = Ledger.read(ledger).newest_start(stage)
        post([event for event in events(ledger) if newest and event.run.runId == str(uuid.UUID(newest.run))])
    except UserError as fault:
        _log.warning("OpenLineage events not delivered: %s", fault)


def events(ledger: Path) -> list[RunEvent]:
    """Return the events of all runs in the ledger, in its order.

    A run without an end whose stage started again later was killed: ``ABORT``. Without a later start it may be
    active: it has a ``START`` only. A result that was taken from DVC's cache is no run.
    """
    entries = {record.run: record.lock for record in read_records(ledger) if isinstance(record, Locked)}
    found = []
    active: dict[str, Start] = {}
    starts: dict[str, Start] = {}
    for record in read_records(ledger):
        if isinstance(record, Start):
            starts[record.run] = record
            if killed := active.pop(record.stage, None):
                found.append(_event(RunState.ABORT, killed, record.at, None))
            active[record.stage] = record
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
    kind = facets.job_type_job.JobTypeJobFacet("BATCH", "DVC", "TASK", producer=PRODUCER)
    return RunEvent(
        eventType=state,
        eventTime=at,
        producer=PRODUCER,
        run=Run(str(uuid.UUID(run.run)), _run_facets(run, entry, error)),
        job=Job(NAMESPACE, run.stage, {"jobType": kind}),
        inputs=[InputDataset(NAMESPACE, one.shown, facets=_version(one)) for one in artifacts(entry.deps)],
        outputs=[OutputDataset(NAMESPACE, one.shown, facets=_version(one)) for one in artifacts(outs)],
    )


def _version(artifact: LockedPath) -> dict[str, facets.DatasetFacet]:
    return {
        "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(f"md5:{artifact.md5}", producer=PRODUCER)
    }


def _run_facets(run: Start, entry: LockEntry, error: str | None) -> dict[str, facets.RunFacet]:
    found: dict[str, facets.RunFacet] = {}
    if run.flow_run:
        flow = facets.parent_run.Run(runId=str(uuid.UUID(run.flow_run)))
        found["parent"] = facets.parent_run.ParentRunFacet(
            flow, facets.parent_run.Job(NAMESPACE, _FLOW), producer=PRODUCER
        )
    if engine := run.versions.get("dvc"):
        found["processing_engine"] = facets.processing_engine_run.ProcessingEngineRunFacet(
            engine, "DVC", producer=PRODUCER
        )
    if values := parameters(entry):
        one = facets.execution_parameters_run.ExecutionParameter
        found["executionParameters"] = facets.execution_parameters_run.ExecutionParametersRunFacet(
            [one(key=name, value=_text(value)) for name, value in values.items()], producer=PRODUCER
        )
    if tags := run.model_dump(include=_TAGS, exclude_unset=True):
        fields = [facets.tags_run.TagsRunFacetFields(key, _text(value), "DVC") for key, value in tags.items()]
        found["tags"] = facets.tags_run.TagsRunFacet(fields, producer=PRODUCER)
    if error:
        found["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(error, "python", producer=PRODUCER)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
