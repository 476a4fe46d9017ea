"""Ridge classifiers in closed form: one decomposition for all classes and all strengths of regularisation.

Targets are +1 for an example's class and −1 for the others, as scikit-learn's ``RidgeClassifier`` has them; the
strength is the one of the least squared leave-one-out error. For a linear smoother ŷ = S·y that error is
(y − ŷ)/(1 − S_ii), exactly and without a fit left out (Golub, Heath and Wahba 1979, Technometrics 21).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.signals.classes import Classes

# Strengths that are tried, in units of the mean squared length of the centred states: from hardly any regularisation
# to nearly nothing but the mean, one per decade.
_STRENGTHS: Final = np.logspace(-7, 2, 10)

Matrix = NDArray[np.float64]


def predicted(states: Matrix, classes: Classes, held: Matrix) -> Classes:
    """Classes of ``held`` [m, H] by a classifier fitted to ``states`` [n, H] and their classes [n]; [m]."""
    found = np.unique(classes)
    middle = states.mean(axis=0)
    centred = states - middle
    unit = np.square(centred).sum(axis=1).mean()
    if len(found) == 1 or unit == 0:  # one class, or one state: the commonest class is all there is to say
        return np.full(len(held), found[np.argmax([(classes == each).sum() for each in found])])
    targets = np.where(classes[:, None] == found, 1.0, -1.0)
    dual = _best_fit(centred, targets - targets.mean(axis=0), _STRENGTHS * unit)
    return found[((held - middle) @ (centred.T @ dual) + targets.mean(axis=0)).argmax(axis=1)]


def _best_fit(centred: Matrix, targets: Matrix, strengths: Matrix) -> Matrix:
    """Dual weights c [n, C] of the strength α of the least leave-one-out error: the weights are Xᵀc.

    With X Xᵀ = Q Λ Qᵀ: c = Q (Λ + α)⁻¹ Qᵀy as far as Xᵀ sees it, and S = Q Λ(Λ + α)⁻¹ Qᵀ + 11ᵀ/n for the mean.
    """
    values, vectors = _decomposed(centred)
    projected, squares = vectors.T @ targets, np.square(vectors)
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
