"""Rotations by Hadamard matrices against SciPy's own, dense products and PyTorch's counter."""

from functools import reduce
from math import prod

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard as sylvester

from salf.engine.techniques.roste import rotated
from salf.hadamard import factors, hadamard

WIDTHS = [1, 2, 3, 7, 12, 20, 28, 36, 48, 49, 64, 100, 172, 344, 576, 768, 896, 960, 1536, 2560]


@pytest.mark.parametrize("order", [1, 2, 8, 32, 12, 20, 24, 44, 60, 72, 152, 224])
def test_rows_of_ones_and_minus_ones_are_orthogonal_in_whole_numbers(order):
    matrix = hadamard(order)
    assert np.issubdtype(matrix.dtype, np.integer)
    assert set(np.unique(matrix)) <= {1, -1}
    assert (matrix @ matrix.T == order * np.eye(order, dtype=int)).all()


@pytest.mark.parametrize("order", [1, 2, 4, 8, 32, 64, 512])
def test_powers_of_two_are_scipys(order):
    rows = torch.eye(order, dtype=torch.float64)
    found = rotated(rows, torch.ones(order)) * order**0.5
    assert torch.equal(found.round().to(torch.int64), torch.from_numpy(sylvester(order)))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rotation_is_orthonormal_and_spreads_an_outlier_at_any_width(width):
    blocks, orders = factors(width)
    assert blocks * prod(orders) == width
    signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    turn = rotated(torch.eye(width, dtype=torch.float64), signs)
    torch.testing.assert_close(turn @ turn.T, torch.eye(width, dtype=torch.float64))
    dense = reduce(np.kron, map(hadamard, orders), np.eye(blocks)) / prod(orders) ** 0.5
    torch.testing.assert_close(turn, torch.from_numpy(signs.numpy()[:, None] * dense))
    rows = torch.randn(5, width, dtype=torch.float64)
    torch.testing.assert_close(rotated(rotated(rows, signs), signs, back=True), rows)
    assert turn.abs().max() == pytest.approx(prod(orders) ** -0.5)


def test_the_embedded_models_widths_are_spread_as_a_whole():
    assert [factors(width) for width in (576, 1536, 64)] == [(1, (12, 12, 4)), (1, (12, 16, 8)), (1, (16, 4))]
