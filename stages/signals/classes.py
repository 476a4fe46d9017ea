"""Signals that tell classes apart: hidden-state variability, and probes at every space.

**Variability.** Xie et al. 2022 (Findings of EMNLP, arXiv 2210.10041), §3.1, equation 3: ν = trace(Σ_w Σ_b⁺) / C, with

    Σ_w = mean over classes of the mean over their members of (h − h̄_y)(h − h̄_y)ᵀ,
    Σ_b = mean over classes of (h̄_y − h̄)(h̄_y − h̄)ᵀ, h̄ the mean of the class means.

In a causal model the position that predicts the answer has seen the whole sentence, so its state is taken (ours).

**Probes** (ours). Ridge classifiers, one fitted to the state at the position that predicts the answer, one to the mean
of the prompt's states, judged by k folds. The strength is that of the least squared leave-one-out error.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import KFold

from salf.errors import UserError
from salf.laws import Array
from stages.signals.sample import Classes, Sample, States

# Strengths to try, in units of the mean squared length of the centred states: from hardly any regularisation to
# nearly nothing but the mean, one per decade.
_STRENGTHS: Final = np.logspace(-7, 2, 10)


def variability(sample: Sample) -> tuple[Array]:
    """ν of each space, [L+1]; NaN where no class differs from another."""
    return (np.array([_ratio(space.astype(np.float64), sample.classes) for space in sample.states.answer]),)


def _ratio(states: Array, classes: Classes) -> float:
    """ν of states [n, H], without an H×H matrix: Σ_b has at most C − 1 directions, and only those count."""
    found = np.unique(classes)
    means = np.stack([states[classes == each].mean(axis=0) for each in found])  # [C, H]
    _, spreads, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    # States are float32: what lies below its rounding is no direction.
    kept = spreads > max(means.shape) * np.finfo(np.float32).eps * np.abs(states).max()
    if not kept.any():
        return float("nan")
    centred = [(states[classes == each] - mean) @ directions[kept].T for each, mean in zip(found, means, strict=True)]
    within = np.mean([np.square(each).mean(axis=0) for each in centred], axis=0)
    between = np.square(spreads[kept]) / len(found)
    return float((within / between).sum() / len(found))


def probe(sample: Sample) -> tuple[Array, Array, Array]:
    """Probe every space with the same folds, [L+1] each.

    First the share of held-out examples whose class is read off the state at the answer position, then the share read
    off the mean of the prompt's states, and the standard error of the best space's pooled share less this one's.
    """
    folds, seed, classes = sample.params.folds, sample.params.seed, sample.classes
    if folds > len(classes):
        raise UserError(f"params.yaml: signals.folds = {folds}: the sample has {len(classes)} examples")
    answer, pooled = (
        np.array([held_out(space, classes, folds, seed) for space in spaces])  # [L+1, n]
        for spaces in (sample.states.answer, sample.states.pooled)
    )
    shares = pooled.mean(axis=1)
    differences = pooled[shares.argmax()].astype(float) - pooled
    return answer.mean(axis=1), shares, differences.std(axis=1, ddof=1) / np.sqrt(len(classes))


def held_out(states: States, classes: Classes, folds: int, seed: int) -> NDArray[np.bool_]:
    """Mask of the n examples [n, H] that a classifier fitted to the other folds classifies correctly, [n]."""
    correct, wide = np.zeros(len(classes), dtype=bool), states.astype(np.float64)
    for fitted, held in KFold(folds, shuffle=True, random_state=seed).split(wide):
        own = wide[fitted]
        unit = np.square(own - own.mean(axis=0)).sum(axis=1).mean()
        # Of one class, or one state for all, only the commonest class is known.
        known = unit > 0 and len(np.unique(classes[fitted])) > 1
        classifier = RidgeClassifierCV(_STRENGTHS * unit) if known else DummyClassifier(strategy="most_frequent")
        correct[held] = classifier.fit(own, classes[fitted]).predict(wide[held]) == classes[held]
    return correct
