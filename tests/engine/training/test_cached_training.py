"""Training on kept boundary states, wherever they are kept, is training over frozen layers that run every time."""

import numpy as np
import pytest
import torch

from salf.cost import forward_flops
from salf.engine.boundary_cache.states import FrozenLayers, Layout
from salf.engine.training import costs
from salf.engine.training.costs import Costs
from salf.engine.training.forms import Trainable
from salf.engine.training.scope import Scope
from salf.methods import Method
from salf.shape import ModelShape
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.engine.boundary_cache.tiny_task import BATCH_TOKENS, BFLOAT16, SHARED, Task, make_model
from tests.engine.training.tiny_training import run

BOUNDARY = 2


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path)


def groups_of(task):
    return Layout.of(task.examples, SHARED, BATCH_TOKENS).groups


def trained(task, mode):
    """A fresh model trained from the start that ``mode`` gives: its curve, its FLOPs and its weights."""
    task.model = make_model(tie_word_embeddings=True)
    changes = {"epochs": 2, "batch_size": 4, "evaluations_per_epoch": 1, "checkpoint_minutes": 60}
    settings = load_params(PROJECT / "params.yaml").finetune.model_copy(update=changes)
    scope, start = Scope.above(BOUNDARY, task.model.depth), task.open(mode, BOUNDARY).start
    made = Trainable.of(task.model, Method("full"), scope, settings, seed=1, steps=1)
    shape = ModelShape.from_config(task.model.network.config.to_dict())
    counted = Costs(shape, scope, uncached=isinstance(start, FrozenLayers))
    done = run(made, task.examples, settings, start, runtime=task.runtime, costs=counted)
    losses = [[point.train_loss, point.validation_loss] for point in done.curve]
    return losses, done.flops, {name: p.detach() for name, p in task.model.network.named_parameters()}


def test_memory_and_disk_train_the_very_same_weights(task):
    losses, flops, weights = trained(task, "memory")
    for mode in ("disk", "disk", "auto"):  # written, then reused twice
        assert (losses, flops) == trained(task, mode)[:2]
        others = trained(task, mode)[2]
        assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("runtime", [None, BFLOAT16], ids=["float32", "bfloat16"])
def test_without_a_cache_the_same_batches_train_the_very_same_weights(task, runtime, monkeypatch):
    """The training batches are the groups of the frozen pass, so every product of training is the same.

    Validation reads batches of its own: its losses agree to 1e-7, and on some processors to the bit.
    """
    task.runtime = runtime or task.runtime
    monkeypatch.setattr(costs, "training_batches", lambda *_: iter(groups_of(task)))
    losses, _, weights = trained(task, "memory")
    others = trained(task, "off")
    (trainings, validations), (other_trainings, other_validations) = (
        zip(*losses, strict=True),
        zip(*others[0], strict=True),
    )
    assert trainings == other_trainings
    np.testing.assert_allclose(other_validations, validations, rtol=1e-7)
    assert all(torch.equal(weights[name], others[2][name]) for name in weights)


@pytest.mark.parametrize(
    ("runtime", "of_losses", "of_weights"),
    [
        pytest.param(None, 1e-4, 1e-3, id="float32"),
        # Every product is rounded to 2^-8, and Adam's first steps take signs for sizes: training in bfloat16
        # at all, instead of float32, moves the weights of this model by 10 to 15 % of their way.
        pytest.param(BFLOAT16, 2e-3, 0.1, id="bfloat16"),
    ],
)
def test_without_a_cache_batches_of_their_own_agree_to_rounding(task, runtime, of_losses, of_weights):
    """Sums of other batches have another order; weights are held to a share of the way that training moved them."""
    task.runtime = runtime or task.runtime
    before = {name: p.detach().clone() for name, p in make_model(tie_word_embeddings=True).network.named_parameters()}
    losses, _, weights = trained(task, "memory")
    others = trained(task, "off")
    np.testing.assert_allclose(others[0][1:], losses[1:], rtol=of_losses)
    moved = distance(weights, before)
    assert moved > 0
    assert distance(others[2], weights) <= of_weights * moved


def distance(some, others):
    """Between all weights of two models, as one long vector."""
    return sum(float((some[name] - others[name]).norm()) ** 2 for name in some) ** 0.5


def test_frozen_layers_that_run_for_every_batch_are_counted_for_every_epoch(task):
    _, kept, _ = trained(task, "memory")
    _, anew, _ = trained(task, "off")
    shape = ModelShape.from_config(task.model.network.config.to_dict())
    rows = sum(len(example.inputs) - SHARED for example in task.examples)
    seen = sum(sum(range(SHARED + 1, len(example.inputs) + 1)) for example in task.examples)
    assert anew - kept == forward_flops(shape, BOUNDARY, rows, seen)  # two epochs' instead of one's
