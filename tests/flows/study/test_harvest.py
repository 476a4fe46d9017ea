"""What of a plan's artifacts becomes rows."""

from pathlib import Path

import pytest

from flows.study.agenda import Case
from flows.study.description import Rule
from flows.study.harvest import choices, intervals
from flows.study.progress import PLAIN, Look

CASE = Case("a", "m")


class Artifacts:
    """JSON artifacts of a model of two layers."""

    def __init__(self, *, fits=True, holds=True, pilots=True):
        laws = [
            {"name": "power", "curve": [3.0, 2.0], "curve_low": [2.9, 1.9], "curve_high": [3.1, 2.1]},
            {"name": "exponential", "curve": [3.5, 2.5], "curve_low": [3.4, 2.4], "curve_high": [3.6, 2.6]},
        ]
        entry = {"best": "exponential", "fits": fits, "laws": laws, "mean": [9.0, 3.25, 2.25]}
        predictions = [{"boundary": k, "loss": 1.0 + k, "low": 0.5 + k, "high": 2.0 + k} for k in range(3)]
        pilot = {"enabled": True, "confidence": 0.9, "law": {"holds": holds}, "predictions": predictions}
        half = {"boundary": 1, "scores": [None, 1.0, None], "reason": "because"}
        self._json = {
            "reports/scaling_law.json": {"confidence": 0.8, "quantities": {"loss": entry}},
            "reports/pilot.json": {**pilot, "flops": {"share": 1.5}} if pilots else {"enabled": False},
            "data/plan/freeze_plan.json": {
                "model": {"layers": 2},
                "selector": "arrival",
                "boundaries": {
                    "half": half,
                    "pilot": {**half, "scores": None},
                    **{key: {**half, "boundary": 2, "before_budget": 0} for key in ("arrival", "tolerance")},
                },
                "absent": {"probe": "no signals"},
            },
        }

    def json(self, path):
        return self._json[path]

    def has(self, path):
        return path in self._json

    def file(self, path):
        return Path(path)


def look(source=PLAIN, **rules):
    return Look(CASE, source, {}, {name: Rule(selector=selector) for name, selector in rules.items()}, {})


def test_a_rule_without_its_evidence_keeps_the_reason_and_pilots_their_price():
    rows = {row["rule"]: row for row in choices(look(half="half", cheap="pilot", probe="probe"), Artifacts())}
    assert (rows["half"]["boundary"], rows["half"]["scores"]) == (1, "[null, 1.0, null]")
    assert (rows["half"]["deciding_share"], rows["cheap"]["deciding_share"]) == (None, 1.5)
    assert ("boundary" in rows["probe"], rows["probe"]["reason"]) == (False, "no signals")
    assert all(row["machine"] and row["cores"] >= 1 for row in rows.values())


def test_the_budget_counts_for_the_plans_own_rule_alone():
    rows = {row["rule"]: row["boundary"] for row in choices(look(own="arrival", other="tolerance"), Artifacts())}
    assert rows == {"own": 2, "other": 0}


@pytest.mark.parametrize("fits", [True, False])
def test_a_trace_keeps_its_means_and_the_law_that_fits(fits):
    rows = intervals(look(), Artifacts(fits=fits, pilots=False))
    assert [row["observed"] for row in rows] == [9.0, 3.25, 2.25]
    assert [row.get("law") for row in rows] == ([None, "exponential", "exponential"] if fits else [None] * 3)
    assert [row["predicted"] for row in rows] == ([None, 3.5, 2.5] if fits else [None] * 3)
    assert {row.get("confidence") for row in rows[1:]} == ({0.8} if fits else {None})


@pytest.mark.parametrize(("holds", "law"), [(True, "joint"), (False, "")])
def test_what_pilots_predict_says_whether_their_law_held(holds, law):
    rows = intervals(look("pilot.enabled=True"), Artifacts(holds=holds))
    assert [(row["source"], row["place"], row["low"], row["law"]) for row in rows] == [
        ("pilot", k, 0.5 + k, law) for k in range(3)
    ]
    assert intervals(look("trace.space=raw"), Artifacts(pilots=False)) == []
