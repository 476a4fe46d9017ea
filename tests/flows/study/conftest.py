"""Descriptions of small studies."""

import pytest

from flows.study.description import Description
from tests.conftest import PROJECT
from tests.flows.study.small import make_project


@pytest.fixture
def project(tmp_path, hub_folder, monkeypatch):
    """The folder of a small study's project, and the working folder."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # the flows are this project's, the stages the copy's
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = tmp_path / "a project"
    make_project(root, hub_folder)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def described():
    """A description of two data sets and one model, with some parts changed."""

    def make(**changes):
        return Description.model_validate(
            {
                "budget_hours": 1.0,
                "seeds": [1, 2],
                "together": 3,
                "boundaries": [0, 0.5, 1],
                "refine": {"rounds": 1, "midpoints": 1},
                "learning_rates": {0: [0.001, 0.002], 0.5: [0.01, 0.02]},
                "widen": 0,
                "equal_compute": [],
                "methods": [],
                "common": {},
                "evidence": {},
                "reference": None,
                "rules": {"half": {"selector": "last-n"}},
                "models": {"m": {}},
                "data_sets": {"a": {}, "b": {}},
                **changes,
            }
        )

    return make
