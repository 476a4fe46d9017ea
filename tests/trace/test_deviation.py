"""Deviations and losses against their definitions in numpy."""

import numpy as np
import torch
from scipy.special import log_softmax

from stages.trace.basis import deviations, losses


def test_deviation_is_one_minus_the_cosine():
    rng = np.random.default_rng(0)
    states, targets = rng.normal(size=(2, 50, 8))
    cosine = (states * targets).sum(1) / np.linalg.norm(states, axis=1) / np.linalg.norm(targets, axis=1)
    ours = deviations(torch.from_numpy(states), torch.from_numpy(targets))
    np.testing.assert_allclose(ours.numpy(), 1 - cosine, rtol=1e-5)


def test_deviation_of_same_orthogonal_and_opposite_directions():
    state = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    target = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-0.1, 0.0]])
    torch.testing.assert_close(deviations(state, target), torch.tensor([0.0, 1.0, 2.0]))


def test_loss_is_the_negative_log_probability_with_the_heads_bias():
    rng = np.random.default_rng(0)
    head = torch.nn.Linear(8, 30)
    states, tokens = rng.normal(size=(600, 8)).astype(np.float32), rng.integers(30, size=600)
    logits = states @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    with torch.no_grad():
        ours = losses(head, torch.from_numpy(states), torch.from_numpy(tokens))
    np.testing.assert_allclose(ours.numpy(), -log_softmax(logits, axis=1)[np.arange(600), tokens], rtol=1e-4)
