"""Relative gradient norms against Hugging Face's own loss and back-propagation."""

import numpy as np
import pytest
import torch

from salf.errors import UserError
from stages.signals.weights import gradient_norm
from tests.signals.conftest import examples, sample_of


def reference(model, rows):
    """One row at a time, whole prompts, labels as Hugging Face takes them."""
    network = model.network.requires_grad_(True)
    answers = sum(len(row.answer_ids) for row in rows)
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]])
        labels = torch.full_like(ids, -100)
        labels[0, -len(row.answer_ids) :] = ids[0, -len(row.answer_ids) :]
        (network(input_ids=ids, labels=labels).loss * len(row.answer_ids) / answers).backward()
    ratios = []
    for layer in model.layers:
        gradient = torch.cat([p.grad.flatten() for p in layer.parameters()]).double().norm()
        ratios.append(float(gradient / torch.cat([p.detach().flatten() for p in layer.parameters()]).double().norm()))
    network.zero_grad(set_to_none=True)
    network.requires_grad_(False)
    return ratios


@pytest.mark.parametrize("batch_tokens", [30, 500])
def test_they_are_those_of_the_mean_loss_however_the_sample_is_cut(model, batch_tokens):
    rows = examples(12)
    (found,) = gradient_norm(sample_of(model, rows, batch_tokens))
    np.testing.assert_allclose(found, reference(model, rows), rtol=1e-4)


def test_the_model_is_left_as_it_was(model):
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    gradient_norm(sample_of(model, examples(4)))
    assert all(p.grad is None and not p.requires_grad for p in model.network.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.network.state_dict().items())


def test_a_gradient_that_is_not_a_number_is_one_line(model):
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="the gradient of layer 1 is not a number"):
        gradient_norm(sample_of(model, examples(4)))
