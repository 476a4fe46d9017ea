"""Scores by subgroup: which group is served worse, and whether another method serves it better."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from salf.engine.batches import Example
from salf.metrics import GroupPanels, Panel
from salf.records import PreparedRecord
from salf.settings import TASKS
from stages.evaluate.compare import Measures, Sampling, compare
from stages.evaluate.scores import Predictions, Statistic

_FEWEST: Final = 20  # examples of a group of its own
_POOLED: Final = "(pooled)"
_NONE: Final = "(none)"


def group_panels(
    test: Sequence[Example], predictions: Mapping[str, Predictions], meta: PreparedRecord, sampling: Sampling
) -> GroupPanels:
    """Compare the groups of a test split; ``predictions`` by model.

    Examples are resampled within their group. Of two labels, the last by name is the one whose rates are measured.
    """
    named = [example.subgroup or _NONE for example in test]
    pooled = sorted(name for name, n in Counter(named).items() if n < _FEWEST)
    placed = [_POOLED if name in pooled else name for name in named]
    members = {group: [at for at, name in enumerate(placed) if name == group] for group in sorted(set(placed))}
    positive = max(one.label for one in meta.labels) if len(meta.labels) == 2 else None
    measures = {name: _measures(said, test, TASKS[meta.task].quality, positive) for name, said in predictions.items()}
    rates = {group: sampling.means(measures, rows) for group, rows in members.items()}
    gaps = {model: _gaps([each[model] for each in rates.values()]) for model in rates[placed[0]]}
    return GroupPanels(
        column=meta.subgroup_column or "",
        positive=positive,
        pooled=pooled,
        groups={group: Panel(examples=len(members[group]), models=compare(each)) for group, each in rates.items()},
        gaps=Panel(examples=len(test), models=compare(gaps)),
    )


def _measures(said: Predictions, test: Sequence[Example], quality: str, positive: str | None) -> Measures:
    every = np.ones(len(test))
    found: Measures = {} if said.correct is None else {quality: (said.correct, every)}
    if said.loss is not None:
        found["loss"] = said.loss, said.tokens
    if positive is not None:
        yes = np.array([one == positive for one in said.predicted], float)
        true = np.array([example.label == positive for example in test], float)
        found |= {"positive_rate": (yes, every), "true_positive_rate": (yes, true)}
        found["false_positive_rate"] = yes, 1 - true
    return found


def _gaps(groups: Sequence[Mapping[str, Statistic]]) -> dict[str, Statistic]:
    """Highest minus lowest group, of every measure; which two these are is not drawn again in resamples."""
    found = {}
    for measure in dict.fromkeys(measure for rates in groups for measure in rates):
        ordered = sorted((rates[measure] for rates in groups if measure in rates), key=lambda one: one.value)
        found[measure] = ordered[-1] - ordered[0]
    return found
