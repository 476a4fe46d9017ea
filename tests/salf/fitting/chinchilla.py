"""Hoffmann's law of two variables (arXiv 2203.15556), whose fit to a table was published."""

import numpy as np
from scipy.special import logsumexp

from salf.laws import Law


def _log_curve(theta, x):
    size, data = np.log(x).T
    floor, of_size, of_data, alpha, beta = (theta[:, i : i + 1] for i in range(5))
    terms = np.stack(np.broadcast_arrays(floor, of_size - alpha * size, of_data - beta * data))
    value = logsumexp(terms, axis=0)
    w_floor, w_size, w_data = np.exp(terms - value)
    return value, np.stack([w_floor, w_size, w_data, -w_size * size, -w_data * data], axis=2)


def _units(theta, x_unit, y_unit):
    floor, of_size, of_data, alpha, beta = theta.T
    sizes, data = of_size + y_unit + alpha * x_unit[0], of_data + y_unit + beta * x_unit[1]
    return np.stack([floor + y_unit, sizes, data, alpha, beta], axis=1)


CHINCHILLA = Law(
    "chinchilla",
    "E + A/N^α + B/D^β",
    ("E", "A", "B", "alpha", "beta"),
    (True, True, True, False, False),
    _log_curve,
    _units,
    ((-1.0, -0.3), (-9.0, -4.0), (-9.0, -4.0), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)),
)
