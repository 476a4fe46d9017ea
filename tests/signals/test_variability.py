"""Hidden-state variability against its definition with whole matrices and numpy's pseudo-inverse."""

from types import SimpleNamespace

import numpy as np
import pytest

from stages.signals.classes import variability


def definition(states, labels):
    """Equation 3 of arXiv 2210.10041, word by word."""
    groups = [states[labels == each] for each in np.unique(labels)]
    means = np.array([group.mean(axis=0) for group in groups])
    within = np.mean(
        [
            np.mean([np.outer(h - mean, h - mean) for h in group], axis=0)
            for group, mean in zip(groups, means, strict=True)
        ],
        axis=0,
    )
    between = np.mean([np.outer(mean - means.mean(axis=0), mean - means.mean(axis=0)) for mean in means], axis=0)
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(groups)


def ratios(states, labels):
    (found,) = variability(SimpleNamespace(states=SimpleNamespace(answer=states), classes=labels))
    return found


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_papers_ratio(classes):
    rng = np.random.default_rng(classes)
    states = rng.normal(size=(3, 60, 16)).astype(np.float32) * np.array([0.1, 1, 30])[:, None, None]
    labels = rng.integers(0, classes, 60)
    states[1, :, 0] += 3 * labels
    expected = [definition(space.astype(float), labels) for space in states]
    np.testing.assert_allclose(ratios(states.astype(np.float32), labels), expected, rtol=1e-5)


def test_it_falls_as_classes_move_apart():
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(80, 4)), np.arange(80) % 2
    states = np.stack([noise + apart * labels[:, None] for apart in (1, 2, 4)]).astype(np.float32)
    assert (np.diff(ratios(states, labels)) < 0).all()


def test_states_that_are_all_alike_have_none():
    states = np.tile(np.linspace(-900.0, 1.0, 6, dtype=np.float32), (1, 20, 1))
    assert np.isnan(ratios(states, np.arange(20) % 2)).all()
