"""Signal-to-noise ratios of weights, by hand and on matrices whose signal is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from salf.engine.models.adapter import take_apart
from salf.errors import UserError
from stages.signals.weights import signal_to_noise, spectrum
from tests.engine.models.tiny import tiny_network


def test_a_hand_built_spectrum():
    values = np.array([10.0, 4.0, 3.0, 2.0, 1.0])  # quartiles 2 and 4: sigma 2 / 1.349, edge twice that for a square
    edge = 2 / 1.349 * 2
    assert 2 < edge < 3
    assert signal_to_noise(values, (5, 5)) == pytest.approx((10 + 4 + 3) / (2 + 1) / 10)
    assert np.isnan(signal_to_noise(np.ones(4), (4, 4)))  # a rotation: no value is noise


def test_added_signal_shows_and_scale_does_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(64, 96))
    spikes = sum(6 * np.outer(rng.normal(size=64), rng.normal(size=96)) / 8 for _ in range(6))
    plain, spiked = (np.linalg.svd(each, compute_uv=False) for each in (noise, noise + spikes))
    share = [signal_to_noise(values, (64, 96)) * values.max() for values in (plain, spiked)]
    assert share[1] > share[0]
    scaled = signal_to_noise(1000 * spiked, (64, 96)) * 1000
    assert scaled == pytest.approx(signal_to_noise(spiked, (64, 96)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_a_layers_value_is_the_mean_over_its_kinds_of_the_score_beside_that_kinds_mean(kind):
    model = take_apart(tiny_network(kind))
    scores: dict[str, list[float]] = {}
    for layer in model.layers:
        for name, weight in layer.named_parameters():
            if weight.ndim >= 2:
                stack = weight.detach().double().numpy().reshape(-1, *weight.shape[-2:])
                each = [signal_to_noise(np.linalg.svd(m, compute_uv=False), m.shape) for m in stack]
                scores.setdefault(name, []).append(np.mean(each))
    known = [np.array(of_kind) for of_kind in scores.values() if np.nansum(of_kind) > 0]
    expected = np.nanmean([of_kind / np.nanmean(of_kind) for of_kind in known], axis=0)
    (found,) = spectrum(SimpleNamespace(model=model))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.mean() == pytest.approx(1)


def test_a_layer_without_noise_is_refused():
    model = take_apart(tiny_network())
    with torch.no_grad():
        for weight in model.layers[1].parameters():
            weight.zero_()
    with pytest.raises(UserError, match="layer 2 has no weight matrix with signal and noise"):
        spectrum(SimpleNamespace(model=model))
