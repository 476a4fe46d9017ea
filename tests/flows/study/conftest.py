"""Descriptions of small studies."""

import pytest

from flows.study.description import Description


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
