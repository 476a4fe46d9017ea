"""Methods side by side: means over seeds, each relative to full fine-tuning in the same run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from salf.metrics import Costs, EqualCompute, Measured, MethodMetrics, Paired, Panel, RunMetrics
from salf.records import CurvePoint, FineTuneClock, FineTuneRecord
from stages.common.params import Evaluate
from stages.evaluate.scores import Bootstrap, Floats, Statistic, differences, intervals, mean_of

_OF_THE_RUN: Final = RunMetrics.model_fields.keys() & FineTuneRecord.model_fields.keys() - {"method"}
# The same for every seed, unless a method draws its layers.
_SAME: Final = ("trained_parameters", "trained_share", "boundary", "boundary_before_budget")

UNTRAINED: Final = "untrained"

Curve = Sequence[CurvePoint]
Scores = Mapping[str, Mapping[str, Statistic]]  # by the model's name, of every score
Measures = dict[str, tuple[Floats, Floats]]  # by name, values and weights of n examples, [n] each


def run_metrics(
    run: FineTuneRecord, full: FineTuneRecord | None, scores: Mapping[str, Statistic], examples: int
) -> RunMetrics:
    """The metrics of a run, relative to full fine-tuning with the same seed; ``examples``: of the test split."""

    def share(key: str) -> float | None:
        part, whole = getattr(run, key), getattr(full, key, None)
        return None if part is None or not whole else part / whole

    return RunMetrics(
        method=run.label,
        **{key: getattr(run, key) for key in _OF_THE_RUN & run.model_fields_set},
        **({"flops_winner": run.race.flops_winner} if run.race else {}),
        flops_share=share("flops"),
        flops_backward_share=share("flops_backward"),
        trained_share=share("trained_parameters"),
        validation_loss=run.validated.validation_loss,
        validation_accuracy=run.validated.validation_accuracy,
        scores=intervals(scores),
        n=examples,
    )


def compare_methods(
    runs: Mapping[str, RunMetrics], curves: Mapping[str, Curve], scores: Scores
) -> dict[str, MethodMetrics]:
    """Compare the methods, by means over seeds; all arguments are keyed by the run's name."""
    grouped = by_method(runs)
    paired, compared = compare(over_methods(grouped, scores)), {}
    for method, names in grouped.items():
        known: dict[str, Any] = {"seeds": [runs[name].seed for name in names], "scores": paired[method].scores}
        for key in Costs.model_fields:
            values = [value for name in names if (value := getattr(runs[name], key)) is not None]
            if values:
                known[key] = values[0] if key in _SAME and len(set(values)) == 1 else float(np.mean(values))
        if "full" in grouped:
            known["differences"] = paired[method].minus_full
            known["at_equal_compute"] = _at_equal_compute(names, runs, curves)
        compared[method] = MethodMetrics(**known)
    return compared


def over_methods(grouped: Mapping[str, Sequence[str]], scores: Scores) -> dict[str, dict[str, Statistic]]:
    """The scores of baselines as they are, and of each method with known runs as means over them."""
    runs = {name for names in grouped.values() for name in names}
    found = {name: dict(mine) for name, mine in scores.items() if name not in runs}
    for method, names in grouped.items():
        if names[0] in scores:
            found[method] = {key: mean_of([scores[name][key] for name in names]) for key in scores[names[0]]}
    return found


def compare(models: Scores) -> dict[str, Paired]:
    """Compare models, full fine-tuning and the untrained one among them, if there are."""
    full, base = models.get("full", {}), models.get(UNTRAINED, {})
    changes = {key: full[key] - base[key] for key in full if key in base}
    changes = {key: change for key, change in changes.items() if change.low > 0 or change.high < 0}
    return {
        name: Paired(
            scores=intervals(mine),
            minus_full=differences({key: one - full[key] for key, one in mine.items() if key in full}),
            minus_base=differences({key: one - base[key] for key, one in mine.items() if key in base}),
            share_of_full=intervals({key: (mine[key] - base[key]) / changes[key] for key in mine if key in changes}),
        )
        for name, mine in models.items()
    }


@dataclass(frozen=True)
class Sampling:
    """How examples are resampled: the same ones for all models."""

    asked: Evaluate
    grouped: Mapping[str, Sequence[str]]  # the runs of every method

    def means(self, models: Mapping[str, Measures], rows: Sequence[int]) -> dict[str, dict[str, Statistic]]:
        """The weighted means over some rows of the examples, by baseline or method; those that are defined there."""
        seed = (self.asked.seed, rows[0])  # no two groups draw alike, whatever their names
        bootstrap = Bootstrap(len(rows), self.asked.bootstrap, self.asked.confidence, seed)
        with np.errstate(invalid="ignore"):  # a resample may lack the examples that a measure is about
            found = {
                model: {
                    name: bootstrap.mean(values[rows], weights[rows])
                    for name, (values, weights) in measures.items()
                    if weights[rows].any()
                }
                for model, measures in models.items()
            }
        return over_methods(self.grouped, found)

    def panel(self, models: Mapping[str, Measures]) -> Panel:
        """Compare the models over all examples."""
        ((values, _), *_) = next(iter(models.values())).values()
        return Panel(examples=len(values), models=compare(self.means(models, range(len(values)))))


def by_method(runs: Mapping[str, RunMetrics]) -> dict[str, list[str]]:
    """The runs' names by method."""
    methods = dict.fromkeys(run.method for run in runs.values())
    return {method: [name for name, run in runs.items() if run.method == method] for method in methods}


def _at_equal_compute(
    names: Sequence[str], runs: Mapping[str, RunMetrics], curves: Mapping[str, Curve]
) -> EqualCompute | None:
    """Means over the seeds that full fine-tuning was run with too."""
    found: list[dict[str, float]] = []
    for name in names:
        partner = f"full-seed{runs[name].seed}"
        if partner in curves and (by_then := full_at_equal_compute(curves[partner], runs[name].flops)):
            last = curves[name][-1]
            found.append({key: getattr(last, key) for key in by_then} | {f"full_{k}": v for k, v in by_then.items()})
    if not found:
        return None
    return EqualCompute(**{key: float(np.mean([entry[key] for entry in found])) for key in found[0]})


def full_at_equal_compute(curve: Curve, flops: float) -> dict[str, float] | None:
    """Validation of full fine-tuning when it had spent ``flops``, by interpolation; ``None`` outside of its log."""
    spent = [point.flops for point in curve]
    if not spent[0] <= flops < spent[-1]:
        return None
    names = [name for name in ("validation_accuracy", "validation_loss") if getattr(curve[0], name) is not None]
    return {name: float(np.interp(flops, spent, [getattr(point, name) for point in curve])) for name in names}


def measured_of(runs: Mapping[str, RunMetrics], clocks: Mapping[str, FineTuneClock]) -> dict[str, Measured]:
    """Return what each method cost on this machine, mean over its seeds, and as shares of full fine-tuning."""
    keys = ("seconds_per_step", "seconds_training", "seconds_cache", "peak_memory_bytes")
    means = {
        method: Measured(**{key: float(np.mean([getattr(clocks[name], key) for name in names])) for key in keys})
        for method, names in by_method(runs).items()
    }
    return {method: one.relative_to(means["full"]) for method, one in means.items()} if "full" in means else means
