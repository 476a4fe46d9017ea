"""Synthetic traces in the two shapes that a real model of 30 layers showed."""

import numpy as np

LAYERS = 30


def late_deviation():
    """Deviation over spaces 0..30: wanders between 0.95 and 1.06 up to space 20, then falls to about 0.87."""
    k = np.arange(LAYERS + 1.0)
    wander = 1.005 + 0.045 * np.sin(k / 2.3) * np.exp(-(((k - 10) / 9) ** 2)) + 0.01 * np.cos(1.7 * k)
    return np.where(k <= 20, wander, 1.0 - 0.013 * np.maximum(k - 20, 0))


def late_loss():
    """Loss over spaces 0..30: above 100, then about 20 nats up to space 24, then down to 8.5."""
    k = np.arange(LAYERS + 1.0)
    curve = np.where(k <= 24, 20 + 0.8 * np.sin(0.9 * k), 20 - 11.5 * np.maximum(k - 24, 0) / 6)
    curve[0] = 110
    return curve


def noisy_examples(curve, examples, noise, seed, layer_noise=0.5):
    """Examples [n, L+1] scattered about a curve: a factor of the whole example's, and one of each space's.

    Log-normal factors of mean one: the mean over examples tends to the curve itself.
    """
    generator = np.random.default_rng(seed)
    whole = generator.normal(scale=noise, size=(examples, 1))
    single = generator.normal(scale=noise * layer_noise, size=(examples, len(curve)))
    return curve * np.exp(whole + single - noise**2 * (1 + layer_noise**2) / 2)
