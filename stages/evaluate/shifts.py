"""The shift from the base of every method, on test prompts with their true answers and on neutral text."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from salf.engine.shift import Shift
from salf.metrics import Paired, ShiftMetrics
from stages.common.params import Evaluate
from stages.evaluate.compare import UNTRAINED, over_methods, paired
from stages.evaluate.scores import Bootstrap, Statistic, intervals


def shift_metrics(
    measured: Mapping[str, Shift], grouped: Mapping[str, Sequence[str]], apart: Collection[str], asked: Evaluate
) -> ShiftMetrics:
    """Compare the methods; ``measured`` by run, ``grouped``: the runs of every method.

    Methods in ``apart`` are measured at other tokens, or on other prompts, and are not compared with full fine-tuning.
    """
    examples = len(next(iter(measured.values())).tokens)
    bootstrap = Bootstrap(examples, asked.bootstrap, asked.confidence, asked.seed)
    known = {method: [run for run in runs if run in measured] for method, runs in grouped.items()}
    known = {method: runs for method, runs in known.items() if runs}
    scores = {run: _scores(shift, bootstrap) for run, shift in measured.items()}
    own = over_methods(known, scores)
    nothing = Statistic(0.0, np.zeros(asked.bootstrap), asked.confidence)
    alike = {name: mine for name, mine in own.items() if name not in apart}
    alike[UNTRAINED] = dict.fromkeys(next(iter(scores.values())), nothing)
    models = paired(alike) | {name: Paired(scores=intervals(own[name])) for name in own.keys() & apart}
    layers = {name: np.mean([measured[run].layers for run in runs], axis=0).tolist() for name, runs in known.items()}
    return ShiftMetrics(examples=examples, models=models, layers=layers)


def _scores(shift: Shift, bootstrap: Bootstrap) -> dict[str, Statistic]:
    return {
        "kl_from_base": bootstrap.mean(shift.from_base, shift.tokens),
        "kl_to_base": bootstrap.mean(shift.to_base, shift.tokens),
    }
