"""Hadamard rotations of any width: which matrices make them, and what they cost. No torch here.

A row of d entries is a grid of a x b, or several, and is multiplied by Hadamard matrices from both sides. Their orders
are powers of two (Sylvester) and q + 1 for primes q = 3 modulo 4 (Paley 1933, construction I). A width without such a
factor is rotated in blocks of its largest power of two.
"""

from functools import cache
from math import isqrt
from typing import TYPE_CHECKING, Any, Final

from salf.cost import Flops, suffix_rows
from salf.shape import ModelShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST: Final = 256  # order by Paley: larger matrices cost more than they spread


@cache
def factors(width: int) -> tuple[int, int, int]:
    """Blocks, a and b of a row, whose product is ``width``; matrices of orders a and b are known."""
    power = (width & -width).bit_length() - 1
    odd = width >> power
    for doublings in range(2, power + 1):
        order = odd << doublings
        prime = all((order - 1) % divisor for divisor in range(2, isqrt(order - 1) + 1))
        if odd > 1 and order <= _LARGEST and prime:
            return 1, order, 1 << (power - doublings)
    return odd, 1 << (power - power // 2), 1 << (power // 2)


@cache
def hadamard(order: int) -> "NDArray[Any]":
    """A matrix of 1 and -1 with orthogonal rows, [order, order], for an order that :func:`factors` names."""
    import numpy as np
    from scipy.linalg import hadamard as sylvester

    if order & (order - 1) == 0:
        return np.asarray(sylvester(order, dtype=np.int64))
    places, squares = np.arange(order - 1), np.arange(1, order - 1) ** 2 % (order - 1)
    differences = (places[:, None] - places) % (order - 1)
    matrix = np.ones((order, order), dtype=np.int64)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = np.where(differences == 0, 1, np.where(np.isin(differences, squares), 1, -1))
    return matrix


def rotation_flops(
    shape: ModelShape, boundary: int, queries: int, _attended: int, positions: int, _seen: int, *, keys_values: bool
) -> Flops:
    """Rotations in a pass above a boundary: of all inputs and weights, and of keys and values there and back.

    The other arguments are those of :func:`salf.cost.training_flops`. The last layer makes two passes through the maps
    of queries, keys and values, whose weights are rotated in both.
    """
    if boundary == shape.layers:
        return Flops()
    below = shape.layers - boundary - 1
    attention = [part for part in shape.layer.maps if part.role != "other"]
    (output, _, _), *into, (down, _, used) = suffix_rows(shape, below, 1, queries, positions)[len(attention) :]
    own = (below + 1) * queries
    both = _row(attention[0].wide) * (own + positions) + sum(_row(p.wide) for p in (output, into[0][0], down)) * used
    both += sum(_row(part.wide) * part.high for part in shape.layer.maps) * (below + 1)
    forward = backward = both
    forward += sum(_row(part.wide) * part.high for part in attention)
    backward += sum(_row(part.wide) * part.high for part in attention if part.role == "fused")
    if keys_values:
        there_and_back = 4 * shape.kv_heads * _row(shape.head_dim)
        forward += there_and_back * (own + positions)
        backward += there_and_back * own
    return Flops(forward, backward)


def _row(width: int) -> int:
    """FLOPs of a row's rotation."""
    _, first, second = factors(width)
    return 2 * width * (first + second)
