"""Losses of pilots that obey a known joint law, with the noise of trainings and of validation examples."""

import numpy as np

from stages.signals.joint_law import Points

LAYERS = 30
LAYER, NORM = 3_540_000.0, 576.0
TRAINED = (LAYERS - np.arange(LAYERS + 1.0)) * LAYER + NORM
TRUTH = {"E": 0.35, "A": 150.0, "alpha": 0.22, "beta": 0.35}
UNTRAINED = 2.5


def truth(boundaries, examples):
    """The law, written out."""
    x = TRAINED[np.asarray(boundaries, int)]
    return TRUTH["E"] + TRUTH["A"] * x ** -TRUTH["alpha"] * np.asarray(examples, float) ** -TRUTH["beta"]


def points(
    boundaries=(0, 8, 15, 22), sizes=(64, 128, 256), *, noise=0.0, validation=50, spread=0.0, seed=0, curve=truth
):
    """Pilots on a whole grid; ``noise``: of each training, ``spread``: of examples, in log units."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(k, n) for k in boundaries for n in sizes], float)
    runs = curve(*pairs.T) * np.exp(rng.normal(scale=noise, size=len(pairs)))
    examples = np.exp(rng.normal(scale=spread, size=(validation, 1)) - spread**2 / 2)  # hard for one, hard for all
    own = np.exp(rng.normal(scale=spread / 4, size=(validation, len(pairs))) - spread**2 / 32)
    return Points(
        boundaries=pairs[:, 0],
        trained=TRAINED[pairs[:, 0].astype(int)],
        examples=pairs[:, 1],
        losses=runs * examples * own,
        untrained=UNTRAINED * examples[:, 0],
        depth=LAYERS,
    )
