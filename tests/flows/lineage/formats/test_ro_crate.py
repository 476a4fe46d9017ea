"""The exported crate is held to the validator that the profile's own community publishes."""

import hashlib
import io
import json
import shutil
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from requests_cache import CachedSession
from rocrate_validator import services
from urllib3 import HTTPResponse

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
# Recommended, and not ours to say: who ran it and who publishes it stand in no record, and a stage's
# program has no address on the web.
UNKNOWN = {
    "The Action SHOULD have an agent that is a Person or Organization",
    "The Application SHOULD have a url",
    "The SoftwareApplication id SHOULD be an absolute URI",
    "The Root Data Entity SHOULD have a link to a Contextual Entity representing the `author` of the RO-Crate",
    "The `publisher` property of a `Root Data Entity` SHOULD be an `Organization`",
}


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Path:
    """The validator's cache with RO-Crate's JSON-LD context, from a package: nothing is fetched from the web."""
    path = tmp_path_factory.mktemp("context") / "http"
    body = (files("rocrate") / "data/ro-crate.jsonld").read_bytes()
    assert json.loads(body)["@id"] == CONTEXT
    response = requests.Response()
    response.status_code = 200
    response.request = requests.Request("GET", CONTEXT).prepare()
    response.url = CONTEXT
    response.headers["Content-Type"] = "application/ld+json"
    response.raw = HTTPResponse(io.BytesIO(body), response.headers, 200, preload_content=False)
    response._content = body
    with CachedSession(str(path), backend="sqlite", expire_after=-1) as session:
        session.cache.save_response(response)
    return path


def complaints(crate: Path, cache: Path, severity: str = "REQUIRED") -> set[str]:
    """What the validator of the Workflow Run Crate profile says against a crate."""
    settings = services.ValidationSettings(
        rocrate_uri=str(crate),
        profile_identifier="workflow-run-crate",
        requirement_severity=severity,
        offline=True,
        cache_path=cache,
        validate_profile_checks=False,  # those check the profile, not the crate
    )
    return {issue.message for issue in services.validate(settings).get_issues()}


def entities(crate: Path) -> dict[str, dict]:
    graph = json.loads((crate / "ro-crate-metadata.json").read_text(encoding="utf-8"))["@graph"]
    assert len({entity["@id"] for entity in graph}) == len(graph)
    return {entity["@id"]: entity for entity in graph}


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


@pytest.mark.slow
def test_the_validator_of_the_profile_accepts_the_crate(project, offline, tmp_path):
    project.export("ro-crate", "--out", str(tmp_path / "crate"))
    assert complaints(tmp_path / "crate", offline, "RECOMMENDED") == UNKNOWN


@pytest.mark.slow
def test_the_validator_refuses_a_crate_from_which_something_is_taken(project, offline, tmp_path):
    """The acceptance above means something only if the validator can say no."""
    crate = tmp_path / "crate"
    project.export("ro-crate", "--out", str(crate))
    document = json.loads((crate / "ro-crate-metadata.json").read_text(encoding="utf-8"))
    for entity in document["@graph"]:
        if entity["@type"] == "CreateAction":
            del entity["instrument"]
    (crate / "ro-crate-metadata.json").write_text(json.dumps(document), encoding="utf-8")
    shutil.rmtree(crate / "data/base")
    said = " ".join(complaints(crate, offline))
    assert "MUST have an instrument" in said
    assert "data/base" in said


def test_the_crate_says_what_git_and_the_files_say(project, tmp_path):
    crate = tmp_path / "crate"
    project.export("ro-crate", "--out", str(crate))
    known = entities(crate)
    for entity in known.values():
        if entity["@type"] == "File" and "identifier" in entity:
            digest = hashlib.md5((crate / unquote(entity["@id"])).read_bytes()).hexdigest()
            assert entity["identifier"] == f"dvc:md5:{digest}"
    run = next(one for one in known.values() if one.get("name") == "Run of finetune@salf+lora-1")
    assert run["result"] == {"@id": "data/models/salf%2Blora-seed1/"}
    assert {one["@id"] for one in run["object"]} >= {"raw.csv", "stage.py", "data/base/config.json"}
    values = {known[one["@id"]]["name"]: known[one["@id"]].get("value") for one in run["object"] if "#" in one["@id"]}
    assert values["finetune.epochs"] == 2
    assert json.loads(values["finetune.rate"]) == [0.001, 0.01]
    assert known[run["instrument"]["@id"]]["softwareVersion"] == project.run("git", "rev-parse", "HEAD").strip()
    order = [known[one["@id"]]["name"] for one in known["./"]["mentions"]]
    assert (order[:2], order[-1]) == (["The chain", "Run of base"], "Run of evaluate")


def test_what_was_read_from_outside_the_project_is_described_without_its_place(project, tmp_path):
    project.export("ro-crate", "--out", str(tmp_path / "crate"))
    known = entities(tmp_path / "crate")
    run = next(one for one in known.values() if one.get("name") == "Run of evaluate")
    outside = [known[one["@id"]] for one in run["object"] if known[one["@id"]]["@type"] == "CreativeWork"]
    assert [one["name"] for one in outside] == ["labels.csv"]
    assert hashlib.md5((tmp_path / "labels.csv").read_bytes()).hexdigest() in outside[0]["identifier"]
    assert "../" not in json.dumps(list(known.values()))
    assert not (tmp_path / "crate/labels.csv").exists()


def test_every_reference_of_the_crate_leads_somewhere(project):
    project.export("ro-crate")
    known = entities(project.root)
    for entity in known.values():
        for value in entity.values():
            for one in listed(value):
                if isinstance(one, dict) and not one["@id"].startswith("http"):
                    assert one["@id"] in known


def test_the_same_records_give_the_same_crate(project):
    project.export("ro-crate")
    first = (project.root / "ro-crate-metadata.json").read_bytes()
    project.export("ro-crate")
    assert (project.root / "ro-crate-metadata.json").read_bytes() == first


@pytest.mark.slow
def test_a_restored_result_is_ascribed_to_the_run_that_made_it(project):
    project.export("ro-crate")
    before = entities(project.root)
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 2", "epochs: 3"))
    project.reproduce()
    params.write_text(params.read_text().replace("epochs: 3", "epochs: 2"))
    project.reproduce()
    project.export("ro-crate")
    after = entities(project.root)
    runs = [{key for key in crate if key.startswith("#run/")} for crate in (before, after)]
    assert runs[0] == runs[1]


def test_what_is_not_as_dvc_locked_it_is_not_described(project):
    (project.root / "raw.csv").write_text("text,label\n")
    with pytest.raises(AssertionError, match="error: the folder does not match"):
        project.export("ro-crate")
