"""The paper's rule with one thing changed at a time, on the mean curves that a study keeps of its traces.

What is changed: the quantity (deviation or loss), how a layer's gain is counted (what it took off, the exponent of the
power law through its two spaces, or by a law), which spaces that law is fitted to, how many examples were traced, and
whether the curve is smoothed over neighbouring spaces first. Norm convention and target are changed by rules of their
own, since they take other traces: these stand beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product, starmap
from typing import Any, Final

import numpy as np
import pandas as pd

from salf.laws import Array
from stages.study.comparisons import Comparison, compared
from stages.study.constant import over_constant
from stages.study.gains import FEWEST, Span, by_law, by_step, layer_of_largest, smoothed
from stages.study.judging import overall
from stages.study.measured import PAPER, Case, Choice, Study, with_choices
from stages.study.resamples import Resamples
from stages.study.verdicts import Verdict, verdicts


@dataclass(frozen=True)
class Variation:
    """One reading of the paper's rule.

    Attributes:
        trace: ``plain`` (the plan's own) or ``reference``.
        window: neighbouring spaces of the moving mean; 1: none.
        span: the spaces that the law of a gain by a law is fitted to; ``None``: the gain needs none.
    """

    trace: str
    quantity: str
    gain: str
    window: int = 1
    span: Span | None = None

    @property
    def name(self) -> str:
        """Its name in ``ablation.csv``."""
        smooth = f"mean of {self.window} spaces" if self.window > 1 else "not smoothed"
        fitted = f" by a law {_SPANS[self.span]}" if self.span else ""
        return f"{self.quantity}, {self.gain} gain{fitted}, {_TRACES[self.trace]}, {smooth}"

    def layer(self, curve: Array) -> int:
        """What it names on a curve [L+1]."""
        smooth = smoothed(curve, self.window)
        return layer_of_largest(by_law(smooth, self.gain, self.span) if self.span else by_step(smooth, self.gain))


_TRACES: Final[Mapping[str, str]] = {"plain": "the plan's trace", "reference": "a larger trace"}
_SPANS: Final[Mapping[Span, str]] = {"whole": "over the whole depth", "falling": "from the peak on"}
_QUANTITIES: Final = ("deviation", "loss")
VARIATIONS: Final[Mapping[str, Variation]] = {
    one.name: one
    for one in [
        *starmap(Variation, product(_TRACES, _QUANTITIES, ("observed", "local"), (1, 3, 5))),
        *starmap(Variation, product(["plain"], _QUANTITIES, ("ratio", "marginal"), [1], _SPANS)),
    ]
}
_FIGURES: Final = (
    *("rule", "groups", "cases", "asked", "interpolated"),
    *("cost_share", "behind_full", "regret", "regret_at_cost"),
)
_COMPARED: Final = ("low", "high", "p_holm", "p_holm_elsewhere")
BASE: Final = Variation("plain", "deviation", "observed").name


def ablation(study: Study, resamples: int, seed: int, confidence: float) -> list[dict[str, Any]]:
    """Every reading of the paper's rule over all cases: its figures, and how it compares.

    ``over_base``: points ahead of the reading that is ablated, where both were measured. ``over_constant``: of the
    fixed depth of the same price (:mod:`stages.study.constant`). Both with an interval and adjusted p-values.

    Args:
        study: what was measured.
        resamples: how many.
        seed: of the draw.
        confidence: of the intervals.
    """
    drawn, found = dict[tuple[str, str], Resamples](), list[Verdict]()
    for case in study.cases:
        varied = with_choices(case, [*variations(case, study.intervals), *_of_other_traces(case)])
        drawn[case.data_set, case.model] = Resamples(varied, resamples, seed)
        found += verdicts(drawn[case.data_set, case.model], confidence)
    readings = [v for v in found if v.selector.startswith("salf")]
    beside = {one.rule: one for one in compared(readings, drawn, BASE, confidence)}
    fixed = {one.rule: one for one in over_constant(readings, drawn, confidence)}
    return [
        {name: getattr(one, name) for name in _FIGURES}
        | _compared("over_base", beside.get(one.rule))
        | _compared("over_constant", fixed.get(one.rule))
        for one in overall(readings)
    ]


def _compared(name: str, over: Comparison | None) -> dict[str, float | None]:
    found = {f"{name}_{field}": getattr(over, field, None) for field in _COMPARED}
    return {name: over.difference if over else None, **found}


def _of_other_traces(case: Case) -> list[Choice]:
    """Choices of the paper's kind by other plans than the paper's rule's own: its plan's trace the readings read."""
    own = {choice.plan for choice in case.choices if choice.rule == PAPER}
    return [choice for choice in case.choices if choice.selector.startswith("salf") and choice.plan not in own]


def variations(case: Case, intervals: pd.DataFrame) -> list[Choice]:
    """What every variation chooses among layers 2..L-1, where its trace was made.

    Args:
        case: the data set and model.
        intervals: the study's ``intervals.csv``, whose column ``observed`` holds the traces' means by space.
    """
    mine = intervals[(intervals["data_set"] == case.data_set) & (intervals["model"] == case.model)]
    found = []
    for name, one in VARIATIONS.items():
        rows = mine[(mine["source"] == f"{one.trace}:{one.quantity}") & mine["observed"].notna()].sort_values("place")
        if case.layers >= FEWEST and list(rows["place"]) == list(range(case.layers + 1)):
            layer = one.layer(rows["observed"].to_numpy(np.float64))
            found.append(Choice(name, "salf", layer, "", ()))
    return found
