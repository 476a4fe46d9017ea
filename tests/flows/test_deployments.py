"""What docs/flows.md tells a user to type for the deployments is what prefect.yaml and the flows understand."""

import json
from pathlib import Path

import pytest
from prefect.flows import load_flow_from_entrypoint
from ruamel.yaml import YAML

from tests.docs_blocks import commands

ROOT = Path(__file__).resolve().parents[2]
DEPLOYED = YAML(typ="safe", pure=True).load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))


def words(start: str) -> list[list[str]]:
    return [command for command in commands("flows.md") if " ".join(command).startswith(start)]


def value(text: str) -> object:
    """As ``prefect deployment run`` reads it: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_the_worker_works_for_the_pool_of_the_deployments():
    (worker,) = words("prefect worker start")
    pool = DEPLOYED["definitions"]["work_pool"]["name"]
    assert worker[3:] == ["--pool", pool, "--type", "process"]
    assert all(deployment["work_pool"]["name"] == pool for deployment in DEPLOYED["deployments"])


@pytest.mark.parametrize("deployment", ["on-demand", "sweep"])
def test_a_deployment_is_run_with_parameters_that_its_flow_takes(deployment, monkeypatch):
    monkeypatch.chdir(ROOT)
    shipped = next(one for one in DEPLOYED["deployments"] if one["name"] == deployment)
    flow = load_flow_from_entrypoint(shipped["entrypoint"])
    (command,) = [line for line in words("prefect deployment run") if line[3].endswith(f"/{deployment}")]
    assert command[3] == f"{flow.name}/{deployment}"
    assert command[4::2] == ["-p"] * len(command[5::2])
    given = {key: value(text) for key, _, text in (word.partition("=") for word in command[5::2])}
    assert given
    assert flow.validate_parameters({**shipped["parameters"], **given})
