"""Hadamard rotations of any width: which matrices make them, and what they cost. No torch here.

A row of d entries is a grid with several axes, each of which is multiplied by a Hadamard matrix. Their orders are
powers of two (Sylvester) and q + 1 for primes q = 3 modulo 4 (Paley 1933, construction I). Odd factors for which no
such order is known are left as blocks, each rotated by itself.
"""

from functools import cache
from math import isqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from salf.cost import Flops, Sums, suffix_rows
from salf.shape import ModelShape

_LARGEST: Final = 256  # order by Paley: larger matrices cost more than they spread
_DOUBLINGS: Final = 4  # of Sylvester's matrices: several small ones cost less than a large one


@cache
def factors(width: int) -> tuple[int, tuple[int, ...]]:
    """Blocks of a row, and the orders of known matrices for the axes of each; their product is ``width``."""
    power = (width & -width).bit_length() - 1
    odd, divisor, blocks = width >> power, 3, 1
    orders: list[int] = []
    while odd > 1:
        if odd % divisor:
            divisor += 2
            continue
        odd //= divisor
        known = (n for n in range(2, power + 1) if divisor << n <= _LARGEST and _is_prime((divisor << n) - 1))
        doublings = next(known, 0)
        power -= doublings
        if doublings:
            orders.append(divisor << doublings)
        else:
            blocks *= divisor
    while power:
        orders.append(1 << min(power, _DOUBLINGS))
        power -= min(power, _DOUBLINGS)
    return blocks, tuple(orders)


@cache
def hadamard(order: int) -> NDArray[Any]:
    """A matrix of 1 and -1 with orthogonal rows, [order, order], for an order that :func:`factors` names."""
    from scipy.linalg import hadamard as sylvester  # a second's import that no other technique needs

    if order & (order - 1) == 0:
        return np.asarray(sylvester(order, dtype=np.int64))
    places, squares = np.arange(order - 1), np.arange(1, order - 1) ** 2 % (order - 1)
    differences = (places[:, None] - places) % (order - 1)
    matrix = np.ones((order, order), dtype=np.int64)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = np.where(differences == 0, 1, np.where(np.isin(differences, squares), 1, -1))
    return matrix


def rotation_flops(shape: ModelShape, boundary: int, sums: Sums, *, keys_values: bool) -> Flops:
    """Rotations in a pass above a boundary: of all inputs and weights, and of keys and values there and back.

    The last layer makes two passes through the maps of queries, keys and values, whose weights are rotated in both.
    """
    if boundary == shape.layers:
        return Flops()
    below = shape.layers - boundary - 1
    attention = [part for part in shape.layer.maps if part.role != "other"]
    (output, _, _), *into, (down, _, used) = suffix_rows(shape, below, 1, sums)[len(attention) :]
    own = (below + 1) * sums.queries
    both = (
        _row(attention[0].wide) * (own + sums.positions) + sum(_row(p.wide) for p in (output, into[0][0], down)) * used
    )
    both += sum(_row(part.wide) * part.high for part in shape.layer.maps) * (below + 1)
    forward = backward = both
    forward += sum(_row(part.wide) * part.high for part in attention)
    backward += sum(_row(part.wide) * part.high for part in attention if part.role == "fused")
    if keys_values:
        there_and_back = 4 * shape.kv_heads * _row(shape.head_dim)
        forward += there_and_back * (own + sums.positions)
        backward += there_and_back * own
    return Flops(forward, backward)


def _row(width: int) -> int:
    """FLOPs of a row's rotation."""
    _, orders = factors(width)
    return 2 * width * sum(orders)


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, isqrt(number) + 1))
