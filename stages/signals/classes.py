"""Signals that tell classes apart: hidden-state variability, and probes at every space.

**Variability.** Xie et al. 2022 (Findings of EMNLP, arXiv 2210.10041), §3.1, equation 3: ν = trace(Σ_w Σ_b⁺) / C, with

    Σ_w = mean over classes of the mean over their members of (h − h̄_y)(h − h̄_y)ᵀ,
    Σ_b = mean over classes of (h̄_y − h̄)(h̄_y − h̄)ᵀ, h̄ the mean of the class means.

In a causal model the position that predicts the answer has seen the whole sentence, so its state is taken (ours).

**Probes** (ours). Ridge classifiers in closed form, one fitted to the state at the position that predicts the answer,
one to the mean of the prompt's states, judged by k folds. The strength is that of the least squared leave-one-out
error, which for a linear smoother ŷ = S·y is (y − ŷ)/(1 − S_ii), exactly (Golub, Heath and Wahba 1979).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from salf.errors import UserError
from stages.signals.sample import Classes, Sample, States

# Strengths to try, in units of the mean squared length of the centred states: from hardly any regularisation to
# nearly nothing but the mean, one per decade.
_STRENGTHS: Final = np.logspace(-7, 2, 10)

Matrix = NDArray[np.float64]


def variability(sample: Sample) -> tuple[Matrix]:
    """ν of each space, [L+1]; NaN where no class differs from another."""
    return (np.array([_ratio(space.astype(np.float64), sample.classes) for space in sample.states.answer]),)


def _ratio(states: Matrix, classes: Classes) -> float:
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


def probe(sample: Sample) -> tuple[Matrix, Matrix, Matrix]:
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
        correct[held] = _predicted(wide[fitted], classes[fitted], wide[held]) == classes[held]
    return correct


def _predicted(states: Matrix, classes: Classes, held: Matrix) -> Classes:
    """Classes of ``held`` [m, H] by a classifier fitted to ``states`` [n, H] and their classes [n]; [m]."""
    found = np.unique(classes)
    middle = states.mean(axis=0)
    centred = states - middle
    unit = np.square(centred).sum(axis=1).mean()
    if len(found) == 1 or unit == 0:  # one class, or one state: only the commonest class is known
        return np.full(len(held), found[np.argmax([(classes == each).sum() for each in found])])
    targets = np.where(classes[:, None] == found, 1.0, -1.0)  # [n, C]
    dual = _best_fit(centred, targets - targets.mean(axis=0), _STRENGTHS * unit)
    return found[((held - middle) @ (centred.T @ dual) + targets.mean(axis=0)).argmax(axis=1)]


def _best_fit(centred: Matrix, targets: Matrix, strengths: Matrix) -> Matrix:
    """Dual weights c [n, C] of the strength α of the least leave-one-out error: the weights are Xᵀc.

    With X Xᵀ = Q Λ Qᵀ: c = Q (Λ + α)⁻¹ Qᵀy as far as Xᵀ sees it, and S = Q Λ(Λ + α)⁻¹ Qᵀ + 11ᵀ/n for the mean.
    """
    values, vectors = _decomposed(centred)
    projected, squares = vectors.T @ targets, np.square(vectors)  # [r, C], [n, r]
    fits: list[tuple[float, Matrix]] = []
    for strength in strengths:
        shrunk = 1 / (values + strength)
        fitted = vectors @ ((values * shrunk)[:, None] * projected)
        leverage = squares @ (values * shrunk) + 1 / len(targets)
        error = np.square((targets - fitted) / (1 - leverage)[:, None]).mean()
        fits.append((float(error), vectors @ (shrunk[:, None] * projected)))
    return min(fits, key=lambda fit: fit[0])[1]


def _decomposed(centred: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues [r] and eigenvectors [n, r] of X Xᵀ."""
    if len(centred) <= centred.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        return np.maximum(values, 0), vectors
    vectors, singular, _ = np.linalg.svd(centred, full_matrices=False)
    return np.square(singular), vectors
