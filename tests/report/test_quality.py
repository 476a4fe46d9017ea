"""The title of the figure of quality against cost."""

from dataclasses import fields

import pytest

from stages.report.quality import Method, _seen
from stages.report.wording import Interval


def method(name, accuracy, share, gap=None):
    known = {
        "name": name,
        "scores": {"accuracy": Interval(accuracy, accuracy - 0.1, accuracy + 0.1)},
        "differences": {"accuracy": gap} if gap else {},
        "cost_share": share,
    }
    return Method(**{**dict.fromkeys(field.name for field in fields(Method)), **known})


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (Interval(0.1, -0.01, 0.2), "Highest accuracy: half (not surely ahead of full); cheapest: half at 55"),
        (Interval(0.1, 0.02, 0.2), "Highest accuracy: half; cheapest: half at 55"),
    ],
)
def test_a_lead_that_may_be_luck_is_called_so(gap, said):
    assert _seen([method("full", 0.5, 1.0), method("half", 0.6, 0.55, gap)], "accuracy").startswith(said)


def test_full_fine_tuning_is_not_held_against_itself():
    assert _seen([method("full", 0.7, 1.0, Interval(0.0, 0.0, 0.0))], "accuracy").startswith("Highest accuracy: full;")
