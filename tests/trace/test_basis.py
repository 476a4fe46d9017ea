"""Semantic bases against numpy's own pseudo-inverse."""

import numpy as np
import pytest
import torch

from stages.trace import basis
from stages.trace.basis import Affine, semantic_bases


def head(rows, columns, *, rank=None, condition=None, seed=0):
    """A random head [rows, columns] in float64, of lower rank or given condition number where asked."""
    rng = np.random.default_rng(seed)
    if rank is not None:
        return rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    matrix = rng.normal(size=(rows, columns))
    if condition is not None:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        matrix = left @ np.diag(np.geomspace(1, 1 / condition, len(values))) @ right
    return matrix


def reference(weight, bias, tokens):
    """W⁺(e_y − b), by the definition, with W⁺ formed by numpy."""
    inverse = np.linalg.pinv(weight, rtol=max(weight.shape) * np.finfo(weight.dtype).eps)
    targets = np.eye(len(weight))[:, tokens] - (0 if bias is None else bias[:, None])
    return (inverse @ targets).T


CASES = {
    "tall": head(300, 24),
    "square": head(24, 24),
    "wide: fewer tokens than hidden units": head(10, 24),
    "rank-deficient": head(300, 24, rank=15),
    "rank-deficient and wide": head(12, 24, rank=7),
    "ill-conditioned": head(300, 24, condition=1e8),
}


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", CASES)
def test_bases_are_those_of_the_pseudo_inverse(name, with_bias):
    weight = CASES[name]
    bias = np.random.default_rng(1).normal(size=len(weight)) if with_bias else None
    tokens = [3, 0, len(weight) - 1]
    ours = semantic_bases(torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias), tokens)
    theirs = reference(weight, bias, tokens)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


def from_one(weight):
    """Gemma's RMSNorm: its weight counts from one."""
    return lambda states: (1 + weight) * torch.nn.functional.rms_norm(states, states.shape[-1:])


def norms(size):
    """Norms with their gain and shift: what is drawn here, not what is read off them."""
    rng = np.random.default_rng(5)
    gain, shift, nothing = rng.uniform(0.2, 3, size), rng.normal(size=size), np.zeros(size)
    rms, layer = torch.nn.RMSNorm(size), torch.nn.LayerNorm(size)
    rms.weight.data = layer.weight.data = torch.from_numpy(gain).float()
    layer.bias.data = torch.from_numpy(shift).float()
    return {
        "RMSNorm": (rms, gain, nothing),
        "RMSNorm without a weight": (torch.nn.RMSNorm(size, elementwise_affine=False), 1 + nothing, nothing),
        "RMSNorm whose weight counts from one": (from_one(torch.from_numpy(gain).float() - 1), gain, nothing),
        "LayerNorm with a bias": (layer, gain, shift),
        "LayerNorm without a weight": (torch.nn.LayerNorm(size, elementwise_affine=False), 1 + nothing, nothing),
    }


@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", norms(24))
def test_a_norm_folded_into_the_head_gives_the_bases_of_their_product(name, with_bias):
    norm, gain, shift = norms(24)[name]
    weight, tokens = CASES["tall"], [3, 0, 299]
    bias = np.random.default_rng(1).normal(size=300) if with_bias else np.zeros(300)
    own, states = torch.from_numpy(weight).float(), torch.randn(7, 24, generator=torch.manual_seed(0))
    folded = Affine.of(norm, own)
    ours = semantic_bases(*folded.folded(own, torch.from_numpy(bias).float() if with_bias else None), tokens)
    theirs = reference(weight * gain, bias + weight @ shift, tokens)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    means = states.mean(dim=-1, keepdim=True) if name.startswith("LayerNorm") else 0.0
    alike = torch.nn.functional.cosine_similarity(folded.undone(norm(states)), states - means)
    torch.testing.assert_close(alike, torch.ones(7), rtol=0, atol=1e-4)


def test_a_basis_means_its_token_exactly_where_the_head_can_say_so():
    """With no more tokens than hidden units, W·s = e_y has a solution: only the token itself is said."""
    weight = torch.from_numpy(CASES["wide: fewer tokens than hidden units"])
    said = semantic_bases(weight, None, range(10)) @ weight.T
    torch.testing.assert_close(said, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_float32_head_of_low_rank_gives_no_noise():
    """Rounding to float32 fills the null space with noise; dividing by it would drown the basis."""
    exact = head(300, 24, rank=15)
    rounded = semantic_bases(torch.from_numpy(exact.astype(np.float32)), None, [5])
    np.testing.assert_allclose(rounded.numpy(), reference(exact, None, [5]), rtol=1e-3, atol=1e-5)


def test_blocks_of_rows_make_no_difference(monkeypatch):
    weight = torch.from_numpy(CASES["tall"])
    bias = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = semantic_bases(weight, bias, [1, 2])
    monkeypatch.setattr("stages.trace.basis._ROWS", 7)
    monkeypatch.setattr("stages.trace.basis._TOKENS", 1)
    torch.testing.assert_close(semantic_bases(weight, bias, [1, 2]), whole)


@pytest.mark.parametrize(("condition", "well"), [(1e2, True), (1e5, True), (1e7, False), (1e12, False)])
def test_the_normal_equations_are_taken_up_to_a_condition_that_numpy_agrees_with(condition, well):
    """The estimate that decides is of WᵀW: at 1e6 for W it reaches the bound of 1e12."""
    weight = head(300, 24, condition=condition)
    factor = basis._factor(torch.from_numpy(weight))
    assert (factor is not None) == well
    if factor is not None:
        np.testing.assert_allclose((factor @ factor.T).numpy(), weight.T @ weight, atol=1e-12)
        assert np.linalg.cond(weight.T @ weight, 1) < basis._WORST_CONDITION


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_of_few_bits_is_solved_in_float64(dtype):
    weight = torch.from_numpy(CASES["tall"]).to(dtype)
    ours = semantic_bases(weight, None, range(300)).numpy()
    np.testing.assert_allclose(ours, np.linalg.pinv(weight.double().numpy()).T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns", "dead"), [(320, 1024, 0), (256, 320, 0), (4000, 64, 1)])
def test_wide_and_dead_heads_of_sixteen_bits_keep_their_bases(rows, columns, dead, dtype):
    """numpy's tolerance with such an eps would be above the largest singular value: every basis zero."""
    weight = torch.from_numpy(head(rows, columns)).to(dtype)
    weight[:, :dead] = 0
    ours = semantic_bases(weight, None, [0, rows - 1]).numpy()
    np.testing.assert_allclose(ours, np.linalg.pinv(weight.double().numpy()).T[[0, rows - 1]], rtol=1e-6, atol=1e-9)
