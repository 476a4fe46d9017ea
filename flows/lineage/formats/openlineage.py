"""OpenLineage events of the stages' runs: live while a flow works, or from the ledger afterwards.

Events go to a file of JSON lines, or to the server that ``OPENLINEAGE_URL`` names (with
``OPENLINEAGE_ENDPOINT`` and ``OPENLINEAGE_API_KEY`` as the specification's other clients read them).
The library's client object is not used on purpose: it adds the repository's remote address, which may
hold a token, and copies the API key into the environment that stages inherit.
"""

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
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

from flows.lineage.formats.results import (
    Artifact,
    ExportError,
    Record,
    artifacts,
    parameters,
    run_records,
)
from flows.lineage.lock import read_lock

EVENTS: Final = Path("reports/lineage/openlineage.jsonl")
NAMESPACE: Final = "salf"
PRODUCER: Final = "urn:salf:flows"
_FLOW: Final = "salf"
_URL: Final = "OPENLINEAGE_URL"
_TAGS: Final = ("commit", "branch", "dirty", "seed", "outcome")

_log = logging.getLogger(__name__)


def emit(event_type: str, record: Record, project: Path, error: str | None = None) -> None:
    """Send one event about a stage that a flow runs, at the time it happens.

    An event that cannot be delivered costs a warning in the log, never the run.

    Args:
        event_type: ``START``, ``COMPLETE``, ``FAIL`` or ``ABORT``.
        record: ``stage`` and ``run`` (a UUID, the same for all events of this run); where known also
            ``at``, ``flow_run``, ``flow_run_name``, ``outcome`` and what a start record holds.
        project: the DVC project; a ``COMPLETE`` names the inputs and outputs that its dvc.lock holds.
        error: why it failed.
    """
    entry = read_lock(project).get(record["stage"]) if event_type == "COMPLETE" else None
    event = _event(RunState(event_type), record, record.get("at") or _now(), entry, error)
    try:
        if server():
            post([event])
        else:
            _append([event], project / EVENTS)
    except ExportError as fault:
        _log.warning("OpenLineage event not delivered: %s", fault)


def events(records: Sequence[Record]) -> list[RunEvent]:
    """Return the events of all runs in the ledger, in its order.

    A run whose end is missing although its stage was started again later was killed: ``ABORT``. One
    whose stage was not started again may be working: it has a ``START`` only. A result that was taken
    from DVC's cache is no run.
    """
    starts, ends = run_records(records)
    locks = {record["run"]: record["lock"] for record in records if record["kind"] == "locked"}
    found = []
    open_runs: dict[str, Record] = {}
    for record in records:
        if record["kind"] == "start":
            killed = open_runs.pop(record["stage"], None)
            if killed is not None:
                found.append(_event(RunState.ABORT, killed, record["at"], None))
            open_runs[record["stage"]] = record
            found.append(_event(RunState.START, record, record["at"], locks.get(record["run"])))
        elif record["kind"] == "end" and record["run"] in starts:
            start = starts[record["run"]]
            if open_runs.get(start["stage"]) is start:
                del open_runs[start["stage"]]
            found.append(_ended(start, ends[record["run"]], locks.get(record["run"])))
    return found


def server() -> str | None:
    """The address of the configured server."""
    return os.environ.get(_URL) or None


def post(found: Iterable[RunEvent]) -> None:
    """Send events to the configured server.

    Raises:
        ExportError: it does not take them.
    """
    settings: dict[str, Any] = {"url": server(), "endpoint": os.environ.get("OPENLINEAGE_ENDPOINT", "api/v1/lineage")}
    if key := os.environ.get("OPENLINEAGE_API_KEY"):
        settings["auth"] = {"type": "api_key", "apiKey": key}
    try:
        transport = HttpTransport(HttpConfig.from_dict(settings))
        for event in found:
            transport.emit(event)
    except Exception as fault:  # the library passes on whatever its HTTP stack raises
        # The address may hold a password, and the fault's text the address.
        raise ExportError(f"the server of {_URL} refused it ({type(fault).__name__})") from None


def lines(found: Iterable[RunEvent]) -> str:
    """The events as JSON lines."""
    return "".join(Serde.to_json(event) + "\n" for event in found)


def _append(found: Iterable[RunEvent], file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # stages that run side by side write here
            stream.write(lines(found))
    except OSError as fault:
        raise ExportError(f"{file.name}: {fault.strerror}") from fault


def _ended(start: Record, end: Record, entry: Mapping[str, Any] | None) -> RunEvent:
    if end["status"] == 0:
        return _event(RunState.COMPLETE, start, end["at"], entry)
    return _event(RunState.FAIL, start, end["at"], None, f"exited with {end['status']}")


def _event(
    state: RunState, record: Record, at: str, entry: Mapping[str, Any] | None, error: str | None = None
) -> RunEvent:
    entry = entry or {}
    finished = state is RunState.COMPLETE
    return RunEvent(
        eventType=state,
        eventTime=at,
        producer=PRODUCER,
        run=Run(str(uuid.UUID(record["run"])), _run_facets(record, entry, error)),
        job=Job(NAMESPACE, record["stage"], {"jobType": _job_type("TASK")}),
        inputs=[InputDataset(*_named(one), facets=_version(one)) for one in artifacts(entry.get("deps") or [])],
        outputs=[OutputDataset(*_named(one), facets=_version(one)) for one in artifacts(entry.get("outs") or [])]
        if finished
        else [],
    )


def _job_type(kind: str) -> JobFacet:
    return job_type_job.JobTypeJobFacet("BATCH", "DVC", kind, producer=PRODUCER)


def _named(artifact: Artifact) -> tuple[str, str]:
    return NAMESPACE, artifact.shown


def _version(artifact: Artifact) -> dict[str, DatasetFacet]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(f"md5:{artifact.md5}", producer=PRODUCER)}


def _run_facets(record: Record, entry: Mapping[str, Any], error: str | None) -> dict[str, RunFacet]:
    facets: dict[str, RunFacet] = {}
    if record.get("flow_run"):
        run = parent_run.Run(runId=str(uuid.UUID(record["flow_run"])))
        facets["parent"] = parent_run.ParentRunFacet(run, parent_run.Job(NAMESPACE, _FLOW), producer=PRODUCER)
    if engine := (record.get("versions") or {}).get("dvc"):
        facets["processing_engine"] = processing_engine_run.ProcessingEngineRunFacet(engine, "DVC", producer=PRODUCER)
    if values := parameters(entry):
        one = execution_parameters_run.ExecutionParameter
        facets["executionParameters"] = execution_parameters_run.ExecutionParametersRunFacet(
            [one(key=name, value=_text(value)) for name, value in values.items()], producer=PRODUCER
        )
    if tags := [tags_run.TagsRunFacetFields(key, _text(record[key]), "DVC") for key in _TAGS if key in record]:
        facets["tags"] = tags_run.TagsRunFacet(tags, producer=PRODUCER)
    if error:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(error, "python", producer=PRODUCER)
    return facets


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
