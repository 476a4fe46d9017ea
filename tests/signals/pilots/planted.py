"""Losses of pilots that obey a known joint law, with the noise of trainings and of validation examples."""

import numpy as np

from salf.fitting.bootstrap import resampled_means
from salf.fitting.joint import Runs

DEPTH = 30
LAYERS = np.append(np.arange(DEPTH, 0, -1.0), 1e-4)  # trained above the boundaries 0..L; the norm alone in the end
TRUTH = {"E": 0.35, "A": 6.0, "alpha": 0.22, "beta": 0.35}
UNTRAINED = 2.5


def truth(layers, examples):
    """The law, written out."""
    e, a, alpha, beta = TRUTH.values()
    return e + a * np.asarray(layers, float) ** -alpha * np.asarray(examples, float) ** -beta


def pilots(
    boundaries=(0, 8, 15, 22),
    sizes=(64, 128, 256),
    *,
    noise=0.0,
    validation=50,
    spread=0.0,
    seed=0,
    curve=truth,
    draws=40,
    drawn=1,
):
    """Pilots on a whole grid, and the losses before training, as a prediction takes them.

    ``noise``: of each training, ``spread``: of examples, in log units; ``draws`` of the validation examples.
    """
    rng = np.random.default_rng(seed)
    pairs = np.array([(LAYERS[k], n) for k in boundaries for n in sizes], float)
    runs = curve(*pairs.T) * np.exp(rng.normal(scale=noise, size=len(pairs)))
    examples = np.exp(rng.normal(scale=spread, size=(validation, 1)) - spread**2 / 2)  # hard for one, hard for all
    own = np.exp(rng.normal(scale=spread / 4, size=(validation, len(pairs))) - spread**2 / 32)
    losses, before = runs * examples * own, UNTRAINED * examples
    samples = resampled_means(np.hstack([losses, before]), draws, drawn)
    untrained = np.append(before.mean(), samples[:, -1])
    return Runs("trained layers", pairs, losses.mean(axis=0), samples[:, :-1]), untrained
