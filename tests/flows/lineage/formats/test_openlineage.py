"""Events are parsed back into the classes of OpenLineage's library, and received by a server on loopback."""

import json
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
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


class Inbox(ThreadingHTTPServer):
    """A server that keeps what is sent to it."""

    def __init__(self, status: int = 200) -> None:
        self.events: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/api/v1/lineage"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.keys.append(self.headers.get("Authorization"))
                inbox.events.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    server = Inbox()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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


def test_the_export_goes_to_the_configured_server(project, inbox):
    project.export("openlineage", OPENLINEAGE_URL=inbox.url, OPENLINEAGE_API_KEY="planted-key")
    assert len(inbox.events) == 8
    for event in inbox.events:
        parsed(event)
    assert set(inbox.keys) == {"Bearer planted-key"}
    assert not (project.root / "reports/lineage/openlineage-runs.jsonl").exists()


def test_a_flow_sends_the_events_of_a_stage_s_newest_run_and_the_key_nowhere_else(project, inbox, monkeypatch):
    flow_run = str(uuid.uuid4())
    (project.root / "raw.csv").write_text("text,label\nred,heat\n")
    project.run("dvc", "repro", "--quiet", "base", SALF_FLOW_RUN=flow_run, SALF_FLOW_RUN_NAME="red-fox")
    record_all(project.root)
    monkeypatch.setenv("OPENLINEAGE_URL", inbox.url)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "planted-key")
    before = dict(os.environ)
    openlineage.send(project.root, "base")
    assert dict(os.environ) == before
    assert "planted-key" not in json.dumps(inbox.events)
    started, completed = inbox.events
    for event in (started, completed):
        assert parsed(event).job.name == "base"
        assert event["run"]["facets"]["parent"]["run"]["runId"] == flow_run
    assert started["run"]["runId"] == completed["run"]["runId"]
    assert [one["name"] for one in completed["outputs"]] == ["data/base"]
    assert completed["run"]["facets"]["executionParameters"]["parameters"]


def test_a_flow_without_a_server_sends_nothing(project, monkeypatch):
    monkeypatch.delenv("OPENLINEAGE_URL", raising=False)
    monkeypatch.setattr(openlineage, "post", lambda _found: pytest.fail("sent"))
    openlineage.send(project.root, "base")


@pytest.mark.slow
def test_a_server_that_is_not_there_costs_a_warning_and_shows_no_password(project, monkeypatch, caplog):
    monkeypatch.setenv("OPENLINEAGE_URL", "http://somebody:planted@127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        openlineage.send(project.root, "base")
    assert "not delivered" in caplog.text
    assert "planted" not in caplog.text
