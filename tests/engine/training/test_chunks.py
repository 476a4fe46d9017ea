"""Logits in chunks: the same loss, gradients and operations as in one piece, and never more rows than one chunk."""

from unittest.mock import MagicMock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from salf.engine import answers
from salf.engine.answers import Reader, training_states
from salf.engine.batches import Example, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.training.step import cross_entropy
from tests.engine.training.tiny_training import RUNTIME, SHARED, params, stepper_of, trainable

ROWS = 4
EXAMPLES = [
    Example(str(n), None, "", "", (1, 2, 3, 5 + n), tuple((7 * n + 3 * at) % 97 for at in range(length)))
    for n, length in enumerate((3, 9, 1, 6))
]


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Rows of logits computed at a time."""
    seen, whole = [], CausalModel.logits

    def logits(self, states):
        seen.append(len(states))
        return whole(self, states)

    monkeypatch.setattr(CausalModel, "logits", logits)
    return seen


def counting() -> FlopCounterMode:
    """PyTorch's counter without its table by module, which cannot follow gradients taken inside a forward pass."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = MagicMock(parents={"Global"})
    return counter


def gradients(made, monkeypatch, at_once):
    monkeypatch.setattr(answers, "HEAD_ROWS", at_once)
    stepper = stepper_of(made, EXAMPLES, params())
    stepper.job.trainable.model.network.zero_grad()
    part = Split(EXAMPLES, SHARED).batch(range(len(EXAMPLES)))
    with counting() as counter:
        loss = cross_entropy(stepper.passes, part) / 3
        loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in made.parameters], counter.get_total_flops()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("boundary", [0, 2, 4])
def test_loss_gradients_and_operations_are_those_of_one_piece(boundary, tied, rows, monkeypatch):
    made = trainable(boundary, tied=tied)
    whole, expected, operations = gradients(made, monkeypatch, at_once=99)
    assert rows == [19]
    rows.clear()
    loss, found, counted = gradients(made, monkeypatch, at_once=ROWS)
    assert rows == [4, 4, 4, 4, 3]
    assert loss == pytest.approx(whole, rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert counted == operations


def test_without_gradients_none_are_computed(rows, monkeypatch):
    monkeypatch.setattr(answers, "HEAD_ROWS", ROWS)
    made = trainable(2)
    stepper = stepper_of(made, EXAMPLES, params())
    part = Split(EXAMPLES, SHARED).batch([0, 1])
    with torch.no_grad(), counting() as ours:
        loss = cross_entropy(stepper.passes, part)
    with torch.no_grad(), counting() as forward:
        said = made.model.logits(training_states(made.model, stepper.passes.start, part)).log_softmax(-1)
    assert ours.get_total_flops() == forward.get_total_flops()
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(-float(said.gather(1, part.targets[:, None]).sum()), rel=1e-6)


def test_reading_looks_at_a_chunk_at_a_time(rows, monkeypatch):
    model, split = trainable(0).model, Split(EXAMPLES, SHARED)
    reader = Reader(model, RUNTIME, None, batch_tokens=99)
    whole = reader.read(split)
    monkeypatch.setattr(answers, "HEAD_ROWS", ROWS)
    rows.clear()
    for ours, theirs in zip(reader.read(split), whole, strict=True):
        assert ours.token_losses == pytest.approx(theirs.token_losses, rel=1e-5)
    assert max(rows) <= ROWS
