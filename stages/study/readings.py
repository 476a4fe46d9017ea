"""Readings of the paper's gain on the study's traces, and the balance of cost and benefit by them.

A *reading* is a quantity, a gain (:mod:`salf.gains`) and the curve that it is computed from: the observed mean, or the
law fitted from its peak on. ``ratio`` and ``marginal`` of the observed curve take their exponent from the same law.
What involves the law has no gain up to the peak. The ratio of the law's curve to the law is 1 and names no layer.

The *benefit* of a boundary is the reduction of the quantity above it, which training can still change: observed, or by
the law, flat up to the peak. It is what ``budget`` and ``tolerance`` decide by, and is compared with measured quality.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from salf import gains
from salf.files import rounded
from salf.fitting.bootstrap import interval, resampled_means
from salf.laws import POWER, Array
from stages.study.comparisons import compared, over_constant
from stages.study.description import FULL
from stages.study.description import Case as Key
from stages.study.measured import Case, Choice, Study, with_choices
from stages.study.resamples import Resamples
from stages.study.tables import Row, Traces, records
from stages.study.verdicts import ORACLE, Drawn, leave_one_out, overall, verdicts

Curve = Literal["observed", "law"]
_CURVES: Final[tuple[Curve, ...]] = ("observed", "law")
_QUANTITIES: Final = ("deviation", "loss")
READ: Final = {  # the readings that the headline names
    "deviation, observed, observed": "the observed deviation",
    "deviation, observed, law": "the law of the deviation",
    "loss, observed, law": "the law of the loss",
}
NOT_TESTED: Final = {
    "the paper's own formula for the gain": "it is in no public source; the law and the gains here are reconstructions",
    "well-known models and datasets": "one model of 135 M parameters and three toys; none of the paper's models",
    "orthogonal to parameter-efficient fine-tuning": "adapters were trained in all layers only",
}
_BUDGETS: Final = (0.2, 0.4, 0.6, 0.8)
_SMALLEST: Final = 1e-3  # of a curve's mean: a predicted gain below it counts as this much
_BOOTSTRAP: Final = 200  # as params.yaml has it for the stage fit
_CONFIDENCE: Final = 0.9
_FIGURES: Final = ["groups", "cases", "cost_share", "behind_full", "regret", "regret_at_cost"]
_OVER: Final = ["difference", "low", "high", "p_holm", "low_elsewhere", "high_elsewhere", "p_holm_elsewhere"]


class Reading(NamedTuple):
    """One reading of the paper's selector; ``trace`` is the quantity, with the basis if it is not the head's."""

    trace: str
    gain: str
    curve: Curve

    @property
    def name(self) -> str:
        """Its name in the tables."""
        return f"{self.trace}, {self.gain}, {self.curve}"

    def layers(self, curves: Array, law: gains.Falling) -> NDArray[np.intp]:
        """The layer of the largest gain [C] of curves [C, L+1] and their laws."""
        spaces, theta = np.arange(1, curves.shape[1], dtype=float), law.fit.theta
        if self.curve == "law":
            curves = np.concatenate([curves[:, :1], POWER.curve(theta, spaces)], axis=1)
        more = {"ratio": (theta, _SMALLEST * curves[:, 1:].mean()), "marginal": (theta,)}.get(self.gain, ())
        found = getattr(gains, self.gain)(curves, *more)  # [C, L]
        if self.curve == "law" or more:
            found = np.where(spaces > law.peaks[:, None], found, 0.0)
        return gains.named(found)


_GAINS: Final = ("observed", "ratio", "local", "marginal")
_FOLDED: Final = "deviation (head-and-norm)"
READINGS: Final = [
    *(
        Reading(quantity, gain, curve)
        for quantity, gain, curve in product(_QUANTITIES, _GAINS, _CURVES)
        if (gain, curve) != ("ratio", "law")
    ),
    Reading(_FOLDED, "observed", "observed"),
    Reading(_FOLDED, "observed", "law"),
]
_NAMES: Final = [one.name for one in READINGS]


class Traced(NamedTuple):
    """A trace's mean curve [1, L+1], resamples of it [B, L+1], and their laws."""

    mean: Array
    law: gains.Falling
    drawn: Array
    laws: gains.Falling

    @classmethod
    def of(cls, examples: Array) -> "Traced":
        """Average and resample curves [n, L+1], as the stage fit does."""
        mean, drawn = examples.mean(axis=0, keepdims=True), resampled_means(examples, _BOOTSTRAP, seed=1)
        law = gains.falling(mean)
        return cls(mean, law, drawn, gains.falling(drawn, law.fit.ends[:, :3]))

    def benefit(self, curve: Curve) -> Array:
        """The reduction left above each boundary 0..L, [L+1]; boundary 0 starts from space 1, as a plan's does."""
        mean, spaces = self.mean[0, 1:], np.arange(1.0, self.mean.shape[1])
        if curve == "law":
            mean = POWER.curve(self.law.fit.theta, np.maximum(spaces, self.law.peaks[0]))[0]
        return np.concatenate([mean[:1], mean]) - mean[-1]


class Readings(NamedTuple):
    """Tables of each case's boundaries by every reading and of measured ones with benefits, and what they come to."""

    table: pd.DataFrame
    balance: pd.DataFrame
    summary: Row


def read(study: Study, traces: Traces, cost_cap: float, draws: int) -> Readings | None:
    """Return readings and balance over all cases, and of the model with most datasets; ``None``: no traces."""
    drawn, places, points = dict[Key, Resamples](), list[Row](), list[pd.DataFrame]()
    for case in study.cases:
        if examples := traces.get(case.key):
            curves = {name: Traced.of(each) for name, each in examples.items()}
            own = [_reading(case, one, curves[one.trace]) for one in READINGS if one.trace in curves]
            chosen = [Choice(row["rule"], "salf", row["boundary"], "") for row in own]
            chosen += [each for name, one in curves.items() if name != _FOLDED for each in _balance(case, name, one)]
            drawn[case.key] = Resamples(with_choices(case, [*chosen, Choice(FULL, FULL, 0, "")]), draws)
            places += own
            points.append(_points(case, curves))
    if not drawn:
        return None
    table = verdicts(drawn)
    table = table[table["selector"].isin(["salf", "budget", FULL, ORACLE])]
    leading = str(table.loc[(table["unit"] == "points") & (table["rule"] == ORACLE), "model"].mode()[0])
    scopes = {"all models": table, leading: table[table["model"] == leading]}
    over = {name: _over(part, drawn) for name, part in scopes.items()}
    claims = [row for name, rows in over.items() for row in _claims(name, rows)]
    claims += [{"claim": one, "verdict": "not tested", "reading": why} for one, why in NOT_TESTED.items()]
    columns = ["data_set", "model", "rule", "method", "interpolated", "quality", "cost_share", "behind_full", "regret"]
    balance = pd.concat(points).map(rounded)
    summary = {
        "scopes": over,
        "left_out": records(leave_one_out(table[table["rule"].isin([*_NAMES, ORACLE])], cost_cap)),
        "correlations": _correlations(balance),
        "claims": records(pd.DataFrame(claims)),
    }
    return Readings(pd.DataFrame(places).merge(table[columns], on=columns[:3]).map(rounded), balance, summary)


def _over(table: pd.DataFrame, drawn: Drawn) -> list[Row]:
    """Every choice over a scope's groups of datasets, against full fine-tuning and the fixed depth of the same cost."""
    found = overall(table).drop([FULL, ORACLE], errors="ignore")[_FIGURES]
    readings = table["rule"].isin(_NAMES)
    fixed = pd.concat([over_constant(table[which], drawn)[_OVER] for which in (readings, ~readings)])
    full = compared(table, drawn, FULL)[_OVER].add_prefix("full_")
    rows = {row["rule"]: row for row in records(found.join(fixed).join(full).reset_index())}
    return [rows[name] for name in dict.fromkeys([*_NAMES, *sorted(rows)]) if name in rows]


def _claims(scope: str, rows: Sequence[Row]) -> list[Row]:
    """Verdicts by these datasets' intervals: one wholly below zero contradicts; a wide one is consistent with much."""
    found = []
    for one in rows:
        for claim, end in (
            ("effective at lower cost, no worse than full fine-tuning", "full_"),
            ("better than a baseline, the fixed depth of the same cost", ""),
        ):
            if one["rule"] in READ and one[f"{end}difference"] is not None:
                said = "contradicts" if one[f"{end}high"] < 0 else "consistent with"
                row = {name: one[f"{end}{name}"] for name in ("difference", "low", "high")}
                row |= {"claim": claim, "verdict": said, "models": scope, "reading": READ[one["rule"]]}
                found.append({**row, "cost_share": one["cost_share"]})
    return found


def _reading(case: Case, one: Reading, traced: Traced) -> Row:
    boundary = int(one.layers(traced.mean, traced.law)[0])
    low, high = interval(one.layers(traced.drawn, traced.laws).astype(float), _CONFIDENCE)
    row: Row = {**case.key._asdict(), "rule": one.name, "boundary": boundary}
    return {**row, "low": round(float(low)), "high": round(float(high))}


def _balance(case: Case, quantity: str, traced: Traced) -> list[Choice]:
    """The choices of budget and tolerance by a trace: the best benefit within a cost, the cheapest near the best."""
    costs = np.interp(np.arange(case.layers + 1) / case.layers, case.line.shares, case.line.costs)
    low, high = interval(traced.drawn, _CONFIDENCE)
    found: list[tuple[str, int | None]] = []
    for curve in _CURVES:
        benefit = traced.benefit(curve)
        near = np.flatnonzero(benefit[:-1] >= benefit[0] - (high - low)[:-1] / 2)
        found.append((f"tolerance, {quantity}, {curve}", int(near[-1])))
        for share in _BUDGETS:
            paid = np.where(costs <= share, benefit, -np.inf)  # the deepest of equals; none if nothing is paid for
            best = int(np.flatnonzero(paid == paid.max())[-1]) if np.isfinite(paid).any() else None
            found.append((f"budget {share:.0%}, {quantity}, {curve}", best))
    return [Choice(name, "budget", boundary, "") for name, boundary in found]


def _points(case: Case, curves: Mapping[str, Traced]) -> pd.DataFrame:
    """Measured boundaries with the share of each trace's reduction above them, and the number of layers there."""
    places, line = np.array(list(case.curve())), case.line
    names = {**case.key._asdict(), "boundary": places, "unit": case.unit}
    found = pd.DataFrame({**names, "cost_share": line.costs, "over_full": line.over_full})
    for quantity, curve in product(_QUANTITIES, _CURVES):
        benefit = curves[quantity].benefit(curve) if quantity in curves else np.zeros(1)
        found[f"{quantity}_{curve}"] = benefit[places] / benefit[0] if benefit[0] > 0 else np.nan
    return found.assign(trained=case.layers - places)


def _correlations(points: pd.DataFrame) -> list[Row]:
    """Spearman's correlation of benefit, or of depth alone, with measured quality over boundaries between 0 and L."""
    inner, found = points[(points["boundary"] > 0) & (points["trained"] > 0)], []
    for (data_set, model), rows in inner.groupby(["data_set", "model"], sort=False):
        ranks = rows.loc[:, "deviation_observed":"trained"].corrwith(rows["over_full"], method="spearman")
        found.append({"data_set": data_set, "model": model, "boundaries": len(rows), **ranks})
    return records(pd.DataFrame(found))
