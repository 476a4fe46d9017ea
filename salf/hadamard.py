"""Hadamard transforms of any width: which matrices make them, and what rotations by them cost. No torch here.

A row of d entries is a grid of a x b, or several; H_a · grid · H_b is the product with the Kronecker product of two
Hadamard matrices. Orders are powers of two (Sylvester), q + 1 and 2·(q + 1) (Paley 1933, q prime: q = 3 and q = 1
modulo 4). A width without such a factor is transformed in blocks of its largest power of two.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from salf.cost import Flops, suffix_rows
from salf.shape import ModelShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LARGEST: Final = 256  # order of a matrix by Paley: larger ones cost more than they spread


@cache
def factors(width: int) -> tuple[int, int, int]:
    """Blocks, a and b of a row: ``width`` is their product, and Hadamard matrices of orders a and b are known."""
    odd, power = width, 0
    while odd % 2 == 0:
        odd, power = odd // 2, power + 1
    for doublings in range(2, power + 1):
        order = odd << doublings
        if odd > 1 and order <= _LARGEST and _paley(order):
            return 1, order, 1 << (power - doublings)
    return odd, 1 << (power - power // 2), 1 << (power // 2)


@cache
def hadamard(order: int) -> "NDArray[Any]":
    """A matrix of 1 and -1 with orthogonal rows, [order, order]; ``order`` is one of :func:`factors`."""
    import numpy as np
    from scipy.linalg import hadamard as sylvester

    prime = _paley(order)
    if not prime:
        return np.asarray(sylvester(order, dtype=np.int64))
    squares = {n * n % prime for n in range(1, prime)}
    character = np.array([0] + [1 if n in squares else -1 for n in range(1, prime)])
    places = np.arange(prime)
    border = 1 if prime % 4 == 1 else -1
    conference = np.zeros((prime + 1, prime + 1), dtype=np.int64)
    conference[0, 1:], conference[1:, 0] = 1, border
    conference[1:, 1:] = character[(places[:, None] - places) % prime]
    identity = np.eye(prime + 1, dtype=np.int64)
    if border == -1:
        return identity + conference
    return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(identity, [[1, -1], [-1, -1]])


def rotation_flops(
    shape: ModelShape, boundary: int, queries: int, _attended: int, positions: int, _seen: int, *, keys_values: bool
) -> Flops:
    """Rotations in one pass above a boundary: of every input and weight, and of keys, values and queries.

    The other arguments are those of :func:`salf.cost.training_flops`. A weight is rotated once for every pass over
    rows; the last layer of a packed model makes two passes through queries, keys and values.
    """
    if boundary == shape.layers:
        return Flops()
    below, forward, backward = shape.layers - boundary - 1, 0, 0
    rows = suffix_rows(shape, below, 1, queries, positions)
    attention = [part for part, _, _ in rows if part.role != "other"]
    *others, down = [(part, used) for part, _, used in rows if part.role == "other"]
    output, into = others[0], others[1]
    entered = (below + 1) * queries + shape.packed * positions
    for part, count in ((attention[0], entered), output, into, down):
        forward += _row(part.wide) * count
        backward += _row(part.wide) * count
    for part in shape.layer.maps:
        twice = shape.packed and part in attention
        forward += _row(part.wide) * part.high * (below + 1 + twice)
        backward += _row(part.wide) * part.high * (below + 1 + (twice and part.role == "fused"))
    if keys_values:
        own, shared = 2 * shape.heads, 2 * shape.kv_heads  # queries and results; keys and values
        forward += _row(shape.head_dim) * (below * queries + positions) * (own + shared)
        forward += _row(shape.head_dim) * queries * (shape.heads + shared)
        backward += _row(shape.head_dim) * (below * queries * (own + shared) + queries * shared + positions * own)
    return Flops(forward, backward)


def _row(width: int) -> int:
    """FLOPs of a row's transform."""
    _, first, second = factors(width)
    return 2 * width * (first + second)


def _paley(order: int) -> int:
    """The prime by which Paley makes a matrix of an order that is no power of two; 0: there is none."""
    for prime, rest in ((order - 1, 3), (order // 2 - 1, 1)):
        if order & (order - 1) and order % 4 == 0 and prime % 4 == rest and _is_prime(prime):
            return prime
    return 0


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
