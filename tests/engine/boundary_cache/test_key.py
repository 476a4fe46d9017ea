"""States are taken for the model, data, boundary and machine that they were made of, and for nothing else."""

from dataclasses import replace

import pytest
import torch

from salf.engine.boundary_cache.folder import frozen_units, key_of
from salf.engine.boundary_cache.states import Layout
from tests.engine.boundary_cache.tiny_task import BFLOAT16, FLOAT32, SHARDS, SHARED, make_examples, make_model


@pytest.fixture(scope="module")
def model():
    return make_model()


def key(model, *, runtime=FLOAT32, shards=SHARDS, boundary=2, examples=None, shared=SHARED, batch_tokens=64):
    units = frozen_units(shards, boundary)
    return key_of(model, runtime, units, Layout.of(examples or make_examples(), shared, batch_tokens))


def other_token():
    first, *rest = make_examples()
    return [replace(first, prompt_ids=(*first.prompt_ids[:-1], 3)), *rest]


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime": BFLOAT16},
        {"shards": {**SHARDS, "embedding.safetensors": "other"}},
        {"shards": {**SHARDS, "layer-02.safetensors": "other"}},
        {"boundary": 1},
        {"boundary": 3},
        {"examples": make_examples(11)},
        {"examples": make_examples()[::-1]},
        {"examples": other_token()},
        {"shared": 2},
        {"batch_tokens": 65},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_whatever_decides_the_states_changes_the_key(model, changes):
    assert key(model, **changes) != key(model)


@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_quantised_layers_change_the_key_and_offloaded_ones_do_not(model, held):
    pytest.importorskip("bitsandbytes")
    assert key(model, runtime=replace(FLOAT32, frozen_weights=held)) != key(model)
    assert key(model, runtime=replace(FLOAT32, frozen_weights="offload")) == key(model)


def test_the_layers_above_and_the_answers_last_tokens_do_not(model):
    shards = {**SHARDS, "layer-03.safetensors": "other", "layer-04.safetensors": "other", "final.safetensors": "other"}
    answers = [replace(e, answer_ids=(*e.answer_ids[:-1], 1), text="x", label="y") for e in make_examples()]
    assert key(model, shards=shards, examples=answers) == key(model)
    assert key(make_model()) == key(model)


def test_settings_of_the_model_that_no_weight_shows_change_the_key(model):
    assert key(make_model(rope_theta=5.0, rms_norm_eps=1e-3)) != key(model)


def test_weights_outside_the_named_parts_change_the_key():
    """A table of learned positions, say, which belongs to no layer."""
    tables = []
    for scale in (1.0, 1.0, 2.0):
        model = make_model()
        model.network.positions = torch.nn.Parameter(torch.arange(6.0).view(2, 3) * scale)
        tables.append(key(model))
    assert tables[0] == tables[1] != tables[2]


def test_threads_change_the_key(model):
    """They share a product among them, which changes its last bits."""
    threads = torch.get_num_threads()
    before = key(model)
    try:
        torch.set_num_threads(threads + 1)
        assert key(model) != before
    finally:
        torch.set_num_threads(threads)
