"""Events are parsed back into the classes of OpenLineage's library."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

from openlineage.client import event_v2
from openlineage.client.generated.base import BaseFacet

from flows.lineage import openlineage
from flows.lineage.ledger import record_all
from salf.ledger import Start, append, ledger_of

STARTED = "START"


def parsed(event: dict[str, Any]) -> event_v2.RunEvent:
    """The event as the library's class, which refuses what the specification does not know or misses."""
    assert event["schemaURL"].startswith("https://openlineage.io/spec/2-")
    for part in (event["run"], event["job"], *event["inputs"], *event["outputs"]):
        for facet in part["facets"].values():
            _parsed_facet(facet)
    return event_v2.RunEvent(
        eventTime=event["eventTime"],
        eventType=event_v2.RunState(event["eventType"]),
        producer=event["producer"],
        run=event_v2.Run(**event["run"]),
        job=event_v2.Job(**event["job"]),
        inputs=[event_v2.InputDataset(**one) for one in event["inputs"]],
        outputs=[event_v2.OutputDataset(**one) for one in event["outputs"]],
    )


def _parsed_facet(facet: dict[str, Any]) -> BaseFacet:
    known = {one._get_schema(): one for one in _all_below(BaseFacet)}
    fields = {key: value for key, value in facet.items() if not key.startswith("_")}
    assert facet["_producer"]
    return known[facet["_schemaURL"]](**fields)


def _all_below(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from _all_below(child)


def lines(file) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_export_has_a_start_and_a_completion_of_every_run(project):
    project.export("openlineage")
    events = lines(project.root / "reports/lineage/openlineage-runs.jsonl")
    for event in events:
        parsed(event)
    stages = ["base", "finetune@full-1", "finetune@salf+lora-1", "evaluate"]
    assert {(event["job"]["name"], event["eventType"]) for event in events} == {
        (stage, kind) for stage in stages for kind in (STARTED, "COMPLETE")
    }
    ended = next(one for one in events if (one["job"]["name"], one["eventType"]) == ("base", "COMPLETE"))
    assert [one["name"] for one in ended["outputs"]] == ["data/base"]
    version = ended["outputs"][0]["facets"]["version"]["datasetVersion"]
    locked = project.run("grep", "-A2", "path: data/base$", "dvc.lock")
    assert version.removeprefix("md5:") in locked
    tags = {tag["key"]: tag["value"] for tag in ended["run"]["facets"]["tags"]["tags"]}
    assert (tags["commit"], tags["dirty"]) == (project.run("git", "rev-parse", "HEAD").strip(), "false")


def test_a_failed_run_is_told_from_a_killed_one(project):
    (project.root / "fail").touch()
    project.run("sh", "-c", "dvc repro --quiet --force base || true")
    append(ledger_of(project.root), Start(run=uuid.uuid4().hex, stage="base", command=["python"]))  # killed: no end
    (project.root / "fail").unlink()
    project.run("dvc", "repro", "--quiet", "--force", "base")
    events = openlineage.events(ledger_of(project.root))
    kinds = [event.eventType.value for event in events if event.job.name == "base"]
    assert kinds == [STARTED, "COMPLETE", STARTED, "FAIL", STARTED, "ABORT", STARTED, "COMPLETE"]


def test_a_run_names_its_flow_and_its_parameters(project):
    flow_run = str(uuid.uuid4())
    (project.root / "raw.csv").write_text("text,label\nred,heat\n")
    project.run("dvc", "repro", "--quiet", "base", SALF_FLOW_RUN=flow_run, SALF_FLOW_RUN_NAME="red-fox")
    record_all(project.root)
    project.export("openlineage")
    *_, started, completed = lines(project.root / "reports/lineage/openlineage-runs.jsonl")
    for event in (started, completed):
        assert parsed(event).job.name == "base"
        assert event["run"]["facets"]["parent"]["run"]["runId"] == flow_run
    assert started["run"]["runId"] == completed["run"]["runId"]
    assert [one["name"] for one in completed["outputs"]] == ["data/base"]
    assert completed["run"]["facets"]["executionParameters"]["parameters"]
