"""OpenLineage events of the stages' runs, from the ledger.

The library's client object is not used on purpose: it adds the repository's remote address, which may hold a token.
"""

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from openlineage.client import facet_v2 as facets
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState, set_producer
from openlineage.client.serde import Serde

from flows.lineage.export import artifacts, parameters
from flows.lineage.ledger import read_records
from salf.ledger import End, Locked, LockedPath, LockEntry, Start

_NAMESPACE: Final = "salf"
_TAGS: Final = {"commit", "branch", "dirty", "seed"}

set_producer("urn:salf:flows")


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
        flow, job = facets.parent_run.Run(_uuid(run.flow_run)), facets.parent_run.Job(_NAMESPACE, "salf")
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
