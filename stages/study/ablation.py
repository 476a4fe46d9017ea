"""The paper's rule with one thing changed at a time, on the mean curves that a study keeps of its traces.

What is changed: the quantity (deviation or loss), how a layer's gain is counted (what it took off, the exponent of the
power law through its two spaces, or by a law), which spaces that law is fitted to, how many examples were traced, and
whether the curve is smoothed over neighbouring spaces first. Norm convention and target are changed by rules of their
own, since they take other traces: these stand beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product, starmap
from typing import Final

import numpy as np
import pandas as pd

from stages.common.laws import Array
from stages.study.comparisons import Comparison, compared
from stages.study.constant import over_constant
from stages.study.gains import FEWEST, Span, by_law, by_step, layer_of_largest, smoothed
from stages.study.judging import Overall, overall
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
BASE: Final = Variation("plain", "deviation", "observed").name


@dataclass(frozen=True)
class Ablated:
    """One reading over all data sets, and beside the one that is ablated, where both were measured.

    Attributes:
        over_base: points ahead of the ablated reading, with an interval; ``p_holm``: adjusted over the readings.
        over_constant: points ahead of the fixed depth of the same price, likewise (see :mod:`stages.study.constant`).
    """

    rule: str
    groups: int
    cases: int
    asked: int
    interpolated: int
    cost_share: float
    behind_full: float
    regret: float
    regret_at_cost: float
    over_base: float | None
    over_base_low: float | None
    over_base_high: float | None
    p_holm: float | None
    over_constant: float | None
    over_constant_low: float | None
    over_constant_high: float | None
    over_constant_p_holm: float | None


def ablation(study: Study, resamples: int, seed: int, confidence: float) -> list[Ablated]:
    """Every reading of the paper's rule, over all cases.

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
    return [_ablated(one, beside.get(one.rule), fixed.get(one.rule)) for one in overall(readings)]


def _of_other_traces(case: Case) -> list[Choice]:
    """Choices of the paper's kind by other plans than the paper's rule's own: its plan's trace the readings read."""
    own = {choice.plan for choice in case.choices if choice.rule == PAPER}
    return [choice for choice in case.choices if choice.selector.startswith("salf") and choice.plan not in own]


def _ablated(one: Overall, over: Comparison | None, fixed: Comparison | None) -> Ablated:
    return Ablated(
        rule=one.rule,
        groups=one.groups,
        cases=one.cases,
        asked=one.asked,
        interpolated=one.interpolated,
        cost_share=one.cost_share,
        behind_full=one.behind_full,
        regret=one.regret,
        regret_at_cost=one.regret_at_cost,
        over_base=over.difference if over else None,
        over_base_low=over.low if over else None,
        over_base_high=over.high if over else None,
        p_holm=over.p_holm if over else None,
        over_constant=fixed.difference if fixed else None,
        over_constant_low=fixed.low if fixed else None,
        over_constant_high=fixed.high if fixed else None,
        over_constant_p_holm=fixed.p_holm if fixed else None,
    )


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
