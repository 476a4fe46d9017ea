"""Scores by subgroup: which group is served worse, and whether another method serves it better."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from salf.engine.batches import Example
from salf.errors import UserError
from salf.metrics import Groups
from salf.records import PreparedRecord
from salf.settings import TASKS
from stages.common.params import Evaluate
from stages.evaluate.compare import over_methods, paired
from stages.evaluate.scores import Bootstrap, Floats, Integers, Predictions, Statistic

_FEWEST: Final = 20  # examples of a group of its own
_POOLED: Final = "(pooled)"
_NONE: Final = "(none)"

Rates = dict[str, Statistic]  # by measure
Measures = dict[str, tuple[Floats, Floats]]  # by name, values and weights of examples, [n] each


def positive_label(meta: PreparedRecord, wanted: str | None) -> str | None:
    """The label whose rates are measured: of two labels the last by name, of more none unless one is wanted."""
    labels = [one.label for one in meta.labels]
    if wanted is not None and wanted not in labels:
        known = f"labels: {', '.join(labels)}" if labels else "the task has none"
        raise UserError(f"evaluate.positive_label = {wanted}: no such label; {known}")
    return wanted or (max(labels) if len(labels) == 2 else None)


def group_metrics(
    test: Sequence[Example],
    predictions: Mapping[str, Predictions],
    grouped: Mapping[str, Sequence[str]],
    meta: PreparedRecord,
    asked: Evaluate,
) -> Groups:
    """Compare the groups of a test split; ``predictions`` by model, ``grouped``: the runs of every method.

    Examples are resampled within their group, the same ones for all models. Groups are independent of each other.
    """
    named = [example.subgroup or _NONE for example in test]
    pooled = sorted(name for name, n in Counter(named).items() if n < _FEWEST)
    placed = np.array([_POOLED if name in pooled else name for name in named])
    positive = positive_label(meta, asked.positive_label)
    quality = TASKS[meta.task].quality
    values = {model: _measures(said, test, quality, positive) for model, said in predictions.items()}
    by_group = {}
    for group in sorted(set(placed)):
        members = np.flatnonzero(placed == group)
        seed = (asked.seed, int(members[0]))  # no two groups draw alike, whatever their names
        bootstrap = Bootstrap(len(members), asked.bootstrap, asked.confidence, seed)
        rates = {model: _rates(bootstrap, each, members) for model, each in values.items()}
        by_group[str(group)] = over_methods(grouped, rates)
    models = list(next(iter(by_group.values())))
    return Groups(
        column=meta.subgroup_column or "",
        positive=positive,
        sizes={group: int(np.sum(placed == group)) for group in by_group},
        pooled=pooled,
        by_group={group: paired(rates) for group, rates in by_group.items()},
        gaps=paired({model: _gaps([rates[model] for rates in by_group.values()]) for model in models}),
        worst={model: min(by_group, key=lambda one: by_group[one][model][quality].value) for model in models},
    )


def _measures(said: Predictions, test: Sequence[Example], quality: str, positive: str | None) -> Measures:
    """What every measure is the weighted mean of."""
    every: Floats = np.ones(len(test))
    found: Measures = {} if said.correct is None else {quality: (said.correct, every)}
    if said.loss is not None:
        found["loss"] = said.loss, said.tokens
    if positive is not None:
        yes = np.array([one == positive for one in said.predicted], float)
        true = np.array([example.label == positive for example in test], float)
        found |= {"positive_rate": (yes, every), "true_positive_rate": (yes, true)}
        found["false_positive_rate"] = yes, 1 - true
    return found


def _rates(bootstrap: Bootstrap, measures: Measures, members: Integers) -> Rates:
    """The measures of a group that are defined there; resamples may lack the label that a rate is about."""
    with np.errstate(invalid="ignore"):
        return {
            name: bootstrap.mean(values[members], weights[members])
            for name, (values, weights) in measures.items()
            if weights[members].any()
        }


def _gaps(groups: Iterable[Rates]) -> Rates:
    """Highest minus lowest group, of every measure; which two these are is not drawn again in resamples."""
    by_measure: dict[str, list[Statistic]] = {}
    for rates in groups:
        for name, one in rates.items():
            by_measure.setdefault(name, []).append(one)
    ordered = {name: sorted(found, key=lambda one: one.value) for name, found in by_measure.items()}
    return {name: found[-1] - found[0] for name, found in ordered.items()}
