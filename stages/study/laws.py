"""The paper's selector with one thing changed at a time, and how often laws and pilots predict what was measured.

The variants are computed from the mean curves that a study saves of its traces. They change the quantity (deviation
or loss), how a layer's gain is counted (what it took off, the exponent of the power law through its two spaces, or by
a fitted law), which spaces that law is fitted to, how many examples were traced, and whether the curve is smoothed
first. Norm convention and target need other traces: selectors of the study with such plans are variants, too.

Curves hold spaces 0..L. The step from the embeddings (layer 1's) is no layer's gain, and above layer L nothing is left
to train: layers 2..L-1 compete.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import Final, Literal

import numpy as np
import pandas as pd

from salf import gains
from salf.files import rounded
from salf.fitting.engine import fit_law
from salf.laws import POWER, Array
from stages.study.comparisons import compared, over_constant
from stages.study.description import Case as Key
from stages.study.measured import PAPER, Case, Choice, Study, with_choices
from stages.study.resamples import Resamples
from stages.study.verdicts import overall, verdicts

Span = Literal["whole", "falling"]
FEWEST: Final = 3  # layers of a model that leaves one to choose
_TAIL: Final = 5  # fewest spaces for a law of three parameters
_FLOOR: Final = 1e-3  # share of a curve's mean below which a predicted gain counts as noise
_TRACES: Final[Mapping[str, str]] = {"plain": "the plan's trace", "reference": "a larger trace"}
_SPANS: Final[Mapping[Span, str]] = {"whole": "over the whole depth", "falling": "from the peak on"}
_QUANTITIES: Final = ("deviation", "loss")
_PILOT: Final = "pilot"


@dataclass(frozen=True)
class Variant:
    """One reading of the paper's selector.

    Attributes:
        trace: ``plain`` (the plan's own) or ``reference``.
        window: neighbouring spaces of the moving mean; 1: none.
        span: the spaces that a gain's law is fitted to; ``None``: the gain needs no law.
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
        """Return the layer that it chooses on a curve [L+1]."""
        smooth = smoothed(curve, self.window)
        return layer_of_largest(by_law(smooth, self.gain, self.span) if self.span else by_step(smooth, self.gain))


VARIANTS: Final[Mapping[str, Variant]] = {
    one.name: one
    for one in [
        *starmap(Variant, product(_TRACES, _QUANTITIES, ("observed", "local"), (1, 3, 5))),
        *starmap(Variant, product(["plain"], _QUANTITIES, ("ratio", "marginal"), [1], _SPANS)),
    ]
}
_BASE: Final = Variant("plain", "deviation", "observed").name
_FIGURES: Final = ["groups", "cases", "asked", "interpolated", "cost_share", "behind_full", "regret", "regret_at_cost"]
_COMPARED: Final = ["difference", "low", "high", "p_holm", "p_holm_elsewhere"]


def smoothed(curve: Array, window: int) -> Array:
    """Return the centred moving mean of spaces 1..L; near the ends, of the neighbours that exist."""
    kernel, inner = np.ones(window), curve[1:]
    means = np.convolve(inner, kernel, "same") / np.convolve(np.ones(len(inner)), kernel, "same")
    return np.concatenate([curve[:1], means])


def by_step(curve: Array, gain: str) -> Array:
    """Return ``observed`` or ``local`` gains of layers 1..L [L], which need no law."""
    return (gains.observed(curve[None]) if gain == "observed" else gains.local(curve[None]))[0]


def by_law(curve: Array, gain: str, span: Span) -> Array:
    """Return ``ratio`` or ``marginal`` gains of layers 1..L [L] by a power law, whether or not that law fits.

    Args:
        curve: the curve [L+1].
        gain: which.
        span: the law is fitted to the ``whole`` depth, or from the curve's peak on (``falling``, at least the last
            five spaces); gains up to where it starts are minus infinity.
    """
    spaces = np.arange(1.0, len(curve))
    start = 1 + int(curve[1 : max(2, len(curve) - _TAIL + 1)].argmax()) if span == "falling" else 1
    theta = fit_law(POWER, spaces[start - 1 :], curve[None, start:]).theta
    if gain == "ratio":
        found = gains.ratio(curve[None], theta, _FLOOR * float(curve[1:].mean()))[0]
    else:
        found = gains.marginal(curve[None], theta)[0]
    return np.where(spaces > start, found, -np.inf)


def layer_of_largest(values: Array) -> int:
    """Return the layer of 2..L-1 with the largest of the gains of layers 1..L [L]; if equal, the deepest."""
    return int(gains.named(values[None])[0])


def ablation(study: Study, resamples: int, seed: int, confidence: float) -> pd.DataFrame:
    """Return every variant's figures over all cases, and how it compares.

    ``over_base``: points above the variant that is ablated, where both were measured. ``over_constant``: above the
    fixed depth of the same cost. Both with an interval and adjusted p-values.
    """
    drawn = {}
    for case in study.cases:
        varied = with_choices(case, [*variants(case, study.intervals), *_of_other_traces(case)])
        drawn[Key(case.data_set, case.model)] = Resamples(varied, resamples, seed)
    table = verdicts(drawn, confidence)
    table = table[table["selector"].str.startswith("salf")]
    over = {
        "over_base": compared(table, drawn, _BASE, confidence),
        "over_constant": over_constant(table, drawn, confidence),
    }
    found = overall(table)[_FIGURES]
    for name, one in over.items():
        found = found.join(one[_COMPARED].add_prefix(f"{name}_").rename(columns={f"{name}_difference": name}))
    return found.reset_index().map(rounded)


def _of_other_traces(case: Case) -> list[Choice]:
    """Choices of the paper's kind by plans with other traces than that of the paper's selector."""
    own = {choice.plan for choice in case.choices if choice.rule == PAPER}
    return [choice for choice in case.choices if choice.selector.startswith("salf") and choice.plan not in own]


def variants(case: Case, intervals: pd.DataFrame) -> list[Choice]:
    """Return what every variant chooses among layers 2..L-1, where its trace was made.

    Args:
        case: the dataset and model.
        intervals: ``intervals.csv``, whose column ``observed`` holds the traces' means by space.
    """
    curves = {
        str(source): rows.sort_values("place")["observed"].to_numpy(np.float64)
        for source, rows in _mine(intervals, case).dropna(subset="observed").groupby("source")
        if case.layers >= FEWEST and sorted(rows["place"]) == list(range(case.layers + 1))
    }
    sources = {name: f"{one.trace}:{one.quantity}" for name, one in VARIANTS.items()}
    return [
        Choice(name, "salf", VARIANTS[name].layer(curves[source]), "", ())
        for name, source in sources.items()
        if source in curves
    ]


def coverage(intervals: pd.DataFrame, cases: Sequence[Case]) -> pd.DataFrame:
    """Return how often intervals cover what was measured later, by case and source.

    Laws are fitted to the trace of few examples and compared with the means of a larger trace of another draw. Pilots
    are small fine-tunes and compared with the validation loss of whole ones at measured boundaries.

    Columns: ``source``: ``deviation``, ``loss`` (laws) or ``pilot``; ``places``: spaces or boundaries with an interval
    and a measurement; ``covered``, ``share``: those that the interval covers; ``error``: mean absolute difference;
    ``nominal``: the intervals' confidence, where it is known.
    """
    found = []
    for case in cases:
        mine = _mine(intervals, case)
        losses = {b: case.runs[method, "epochs"].validation_loss for b, method in case.curve().items()}
        truths = {(_PILOT, _PILOT): losses}
        for source, rows in mine[mine["source"].str.startswith("reference:")].groupby("source"):
            quantity = str(source).partition(":")[2]
            truths[quantity, f"plain:{quantity}"] = dict(zip(rows["place"], rows["observed"], strict=True))
        for (name, source), truth in truths.items():
            rows = mine[(mine["source"] == source) & mine["place"].isin(list(truth))].dropna(subset=["low", "high"])
            if len(rows):
                found.append({"data_set": case.data_set, "model": case.model, "source": name, **_covered(rows, truth)})
    return pd.DataFrame(found)


def _covered(rows: pd.DataFrame, truth: Mapping[int, float]) -> dict[str, float | int]:
    values = rows["place"].map(truth)
    inside = (rows["low"] <= values) & (values <= rows["high"])
    return {
        "places": len(rows),
        "covered": int(inside.sum()),
        "error": float((rows["predicted"] - values).abs().mean()),
        "nominal": float(rows["confidence"].iloc[0]),
        "share": float(inside.mean()),
    }


def fits(intervals: pd.DataFrame, cases: Sequence[Case]) -> pd.DataFrame:
    """Return each source's law on each case that has one: columns ``source`` and ``law``, empty where none fits."""
    here = pd.MultiIndex.from_tuples([(case.data_set, case.model) for case in cases])
    mine = intervals[pd.MultiIndex.from_frame(intervals[["data_set", "model"]]).isin(here)]
    mine = mine[mine["source"].str.match(f"{_PILOT}$|plain:")]
    named = mine.groupby(["data_set", "model", "source"])["law"].max().reset_index()
    return named.assign(source=named["source"].str.removeprefix("plain:"))


def _mine(intervals: pd.DataFrame, case: Case) -> pd.DataFrame:
    return intervals[(intervals["data_set"] == case.data_set) & (intervals["model"] == case.model)]
