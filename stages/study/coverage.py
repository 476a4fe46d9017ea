"""Counts how often a law fits, and how often intervals of laws and pilots cover later measurements."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from stages.study.measured import Case

_CASE: Final = ["data_set", "model"]
_PLACE: Final = [*_CASE, "source", "place"]


def coverage(intervals: pd.DataFrame, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return for laws and pilots how often a law fits and which one, and how many places their intervals cover.

    Laws are fitted to the trace of few examples and compared with the means of a larger trace of another draw. Pilots
    are small fine-tunes and compared with the validation loss of whole ones at measured boundaries.
    """
    here = pd.DataFrame([(case.data_set, case.model) for case in cases], columns=_CASE)
    intervals = intervals.merge(here, on=_CASE)
    mine = intervals[intervals["source"].str.match("pilot$|plain:")].replace({"source": "^plain:"}, "", regex=True)
    laws = mine.groupby([*_CASE, "source"])["law"].max()
    both = mine.dropna(subset=["low", "high"]).merge(_truths(intervals, cases), on=_PLACE)
    both["covered"] = (both["low"] <= both["truth"]) & (both["truth"] <= both["high"])
    found = []
    for source, rows in both.groupby("source"):
        named = laws[laws.index.get_level_values("source") == source]
        counts = dict(Counter(sorted(named[named != ""])))
        row = {"source": source, "fitted": sum(counts.values()), "asked": len(named), "laws": counts}
        row |= {"places": len(rows), "nominal": rows["confidence"].iloc[0], "covered": float(rows["covered"].mean())}
        found.append(row)
    return found


def _truths(intervals: pd.DataFrame, cases: Sequence[Case]) -> pd.DataFrame:
    """The later measurement at every place."""
    larger = intervals[intervals["source"].str.startswith("reference:")].rename(columns={"observed": "truth"})
    larger = larger.replace({"source": "^reference:"}, "", regex=True)[[*_PLACE, "truth"]]
    losses = [
        (case.data_set, case.model, "pilot", boundary, case.runs[method, "epochs"].validation_loss)
        for case in cases
        for boundary, method in case.curve().items()
    ]
    return pd.concat([larger, pd.DataFrame(losses, columns=larger.columns).astype({"place": "Int64"})])
