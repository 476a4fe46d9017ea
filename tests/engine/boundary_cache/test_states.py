"""Boundary states are Hugging Face's hidden states, wherever they are kept and however they came about."""

import pytest
import torch

from salf.engine.answers import training_logits
from salf.engine.batches import Batch
from salf.engine.boundary_cache.states import FrozenLayers, Layout
from salf.engine.runtime import choose_runtime
from salf.settings import Device
from tests.engine.boundary_cache.tiny_task import BATCH_TOKENS, BFLOAT16, SHARED, Task, make_examples, make_model


@pytest.fixture
def task(tmp_path):
    return Task(tmp_path)


def batch(task, index):
    return Batch.of(task.examples, index, SHARED)


def hidden_states(task, example, boundary):
    """Hugging Face's own, of the whole prompt without packing."""
    with torch.no_grad():
        return task.model.network(torch.tensor([example.inputs]), output_hidden_states=True).hidden_states[boundary][0]


def test_rows_of_a_layout_are_all_different_and_follow_the_groups():
    examples = make_examples()
    layout = Layout.of(examples, SHARED, BATCH_TOKENS)
    assert len(layout.groups) > 2
    in_order = [layout.rows_of(torch.tensor(group), joined=False) for group in layout.groups]
    assert torch.cat(in_order).tolist() == list(range(SHARED, layout.rows))
    one_by_one = [layout.rows_of(torch.tensor([i]), joined=True).tolist() for i in range(len(examples))]
    for rows, example in zip(one_by_one, examples, strict=True):
        assert rows == [*range(SHARED), *range(rows[SHARED], rows[SHARED] + len(example.inputs) - SHARED)]


@pytest.mark.parametrize("mode", ["auto", "memory", "disk", "off"])
def test_states_are_hugging_faces_hidden_states(task, mode):
    start = task.open(mode).start
    picked = [7, 0, 4]
    states = start.states(batch(task, picked)).split(list(batch(task, picked).lengths))
    for i, rows in zip(picked, states, strict=True):
        hidden = hidden_states(task, task.examples[i], 2)
        torch.testing.assert_close(rows, hidden[SHARED:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(start.beginning(), hidden[:SHARED], rtol=1e-4, atol=1e-5)
    joined = start.states(batch(task, picked), joined=True)
    assert torch.equal(joined[:SHARED], start.beginning())
    torch.testing.assert_close(joined[SHARED:], torch.cat(states))


@pytest.mark.parametrize("runtime", [None, BFLOAT16], ids=["float32", "bfloat16"])
def test_memory_disk_and_no_cache_give_the_same_bits_in_the_same_passes(task, runtime):
    task.runtime = runtime or task.runtime
    starts = [task.open(mode).start for mode in ("auto", "memory", "disk", "off")]
    assert isinstance(starts[-1], FrozenLayers)
    expected = task.computed()
    for group in expected.layout.groups:
        for start in starts:
            found = start.states(batch(task, group), joined=True)
            assert torch.equal(found, expected.states(batch(task, group), joined=True))
            assert not found.requires_grad


def test_states_of_other_passes_agree_to_rounding(task):
    """A product's last bits depend on how many rows share it: 1e-6 of the states' size is stated."""
    cached, anew = task.open("memory").start, task.open("off").start
    one = batch(task, [3])
    torch.testing.assert_close(cached.states(one), anew.states(one), rtol=1e-5, atol=1e-6)


def test_bfloat16_products_keep_states_unrounded_and_agree_within_its_precision(task):
    """Mixed precision adds to a float32 stream, which is kept as it is: only products are rounded."""
    exact = task.computed()
    task.runtime = BFLOAT16
    mixed = task.open("disk").start
    everything = batch(task, range(len(task.examples)))
    states, reference = mixed.states(everything), exact.states(everything)
    assert states.dtype == torch.float32
    # 8 bits of mantissa: 2^-8 per product, and some dozens of them lie below layer 2.
    assert (states - reference).norm() / reference.norm() < 2**-6
    assert not torch.equal(states, states.bfloat16().float())


def test_bfloat16_weights_keep_bfloat16_states(task):
    task.runtime = BFLOAT16
    task.model.network.to(torch.bfloat16)
    opened = task.open("disk")
    rows = opened.start.rows
    assert rows.dtype == torch.bfloat16
    assert opened.bytes == rows.numel() * 2
    assert torch.equal(rows, task.computed().rows)


@pytest.mark.parametrize("mode", ["memory", "disk", "off"])
def test_dropout_in_frozen_layers_is_off(task, mode):
    task.model = make_model(attention_dropout=0.5)
    task.model.network.eval()
    for layer in task.model.layers[2:]:
        layer.train()
    first, second = (task.open(mode).start.states(batch(task, [0, 1])) for _ in range(2))
    assert torch.equal(first, second)


def test_no_gradient_reaches_a_frozen_layer(task):
    for parameter in task.model.layers[2:].parameters():
        parameter.requires_grad_(True)
    for mode in ("memory", "off"):
        training_logits(task.model, task.open(mode).start, batch(task, [0, 1])).sum().backward()
        frozen = [task.model.embedding.weight, *task.model.layers[:2].parameters()]
        assert all(parameter.grad is None for parameter in frozen)
        assert all(parameter.grad is not None for parameter in task.model.layers[2:].parameters())


@pytest.mark.parametrize("mode", ["memory", "off"])
def test_a_start_serves_another_model_with_the_same_frozen_layers(task, mode):
    opened = task.open(mode)
    other = make_model()
    with torch.no_grad():
        for parameter in other.layers[2:].parameters():
            parameter.mul_(2)
    one = batch(task, [1, 2])
    assert torch.equal(opened.start_for(other).states(one), opened.start.states(one))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["memory", "disk", "auto", "off"])
def test_a_gpu_gives_the_processors_states(task, mode):
    everything = batch(task, range(len(task.examples)))
    expected = task.computed().states(everything, joined=True)
    task.runtime = choose_runtime(Device(kind="cuda", dtype="float32"))
    task.model.network.to("cuda")
    states = task.open(mode).start.states(everything.to(task.runtime.device), joined=True)
    assert states.device.type == "cuda"
    torch.testing.assert_close(states.cpu(), expected, rtol=1e-3, atol=1e-4)
