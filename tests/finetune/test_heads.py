"""Which of embedding and head trains, tied and untied, and what the saved folder holds of them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.models.shards import group_by_unit, shard_hashes, write_index, write_tensors
from salf.engine.training.forms import Trainable
from salf.engine.training.scope import scope_of
from salf.errors import UserError
from salf.families import family_of
from salf.methods import method_of
from salf.plan import FreezePlan
from stages.finetune.save import Base, save_model
from tests.engine.training.tiny_training import SHARED, params, run
from tests.plan_data import LAYERS, artifact
from tests.salf.test_plan import tiny

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def examples():
    rng = np.random.default_rng(0)
    return [
        Example(str(n), None, "", "", (5, 6, 7, *rng.integers(8, 53, size=3 + n % 3)), tuple(rng.integers(3, 53, 2)))
        for n in range(8)
    ]


def write_base(folder, *, tied):
    """A folder in the layout of the stage base: one shard per unit, a tied head once."""
    folder.mkdir()
    network = tiny(tied=tied)
    named = dict(network.named_parameters())
    units = group_by_unit(named, family_of("llama"), LAYERS)
    for unit, names in units.items():
        write_tensors(folder / f"{unit}.safetensors", {name: named[name] for name in names})
    write_index(folder, units)
    network.config.architectures = ["LlamaForCausalLM"]
    network.config.save_pretrained(folder)
    return folder


def trained_and_saved(tmp_path, examples, method, *, tied, boundary, first_n=2):
    base = write_base(tmp_path / "base", tied=tied)
    plan = FreezePlan.model_validate(artifact(boundary, tied=tied))
    settings = params(lisa_layers=1, lisa_steps=2)  # four steps: two draws
    scope = scope_of(method_of(method), plan, settings, seed=5, first_n=first_n)
    model = open_model(base, torch.device("cpu"))
    made = Trainable.of(model, method_of(method), scope, settings, seed=1, steps=4)
    run(made, examples, settings)
    folder = tmp_path / "tuned"
    folder.mkdir()
    rewritten = save_model(made, base, folder, Base(str(base)), None)
    assert rewritten == made.units
    return base, folder, made, rewritten


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("method", "boundary"), [("salf", 0), ("salf", 2), ("salf", 4), ("salf+lora", 0), ("salf+lora", 2)]
)
def test_what_trains_of_embedding_and_head(tmp_path, examples, method, boundary, tied):
    base, folder, made, _ = trained_and_saved(tmp_path, examples, method, tied=tied, boundary=boundary)
    before, after = (AutoModelForCausalLM.from_pretrained(each) for each in (base, folder))
    weights_train = method == "salf"
    embedding_trains = weights_train and boundary == 0
    head_trains = weights_train and (boundary == 0 or not tied)
    assert torch.equal(after.model.embed_tokens.weight, before.model.embed_tokens.weight) != embedding_trains
    assert torch.equal(after.lm_head.weight, before.lm_head.weight) != head_trains
    assert torch.equal(after.lm_head.weight, after.model.embed_tokens.weight) == tied
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    # What was saved is what was trained.
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        torch.testing.assert_close(after(ids).logits, made.model.network(ids).logits, rtol=1e-4, atol=1e-5)


def changed_shards(base, folder):
    before, after = shard_hashes(base), shard_hashes(folder)
    return [name.removesuffix(".safetensors") for name in after if after[name] != before[name]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("freeze-1", ["layer-02", "layer-03", "layer-04", "final"]),
        ("freeze-4", ["final"]),
        ("freeze-2+lora", ["layer-03", "layer-04"]),
        ("full+lora", ["layer-01", "layer-02", "layer-03", "layer-04"]),
        ("first-n", ["embedding", "layer-01", "layer-02"]),
        ("lisa", ["embedding", "layer-01", "layer-03", "final"]),
    ],
)
def test_every_method_changes_the_shards_that_it_names_and_no_other(tmp_path, examples, method, changed, tied):
    """By the files' hashes. The tied head goes with the embedding, one of its own with the final norm."""
    base, folder, made, rewritten = trained_and_saved(tmp_path, examples, method, tied=tied, boundary=3)
    assert sorted(changed_shards(base, folder)) == sorted(rewritten) == sorted(changed)
    assert made.units == changed


def test_the_first_layers_are_at_most_all_layers(tmp_path, examples):
    base, folder, _, rewritten = trained_and_saved(tmp_path, examples, "first-n", tied=True, boundary=2, first_n=9)
    assert rewritten == ["embedding", "layer-01", "layer-02", "layer-03", "layer-04"]
    assert sorted(changed_shards(base, folder)) == rewritten


@pytest.mark.parametrize(("boundary", "trained"), [(3, 1), (1, 3), (4, 1)])
def test_the_reversed_freeze_trains_as_many_layers_as_the_plan_unless_told(boundary, trained):
    plan = FreezePlan.model_validate(artifact(boundary))
    scope = scope_of(method_of("first-n"), plan, params(), seed=1, first_n=None)
    assert (scope.boundary, scope.layers) == (0, tuple(range(1, trained + 1)))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("freeze-5", {}, "allowed: freeze-0 to freeze-4"),
        ("none+lora", {}, "the plan freezes all 4 layers, so lora has none"),
        ("lisa", {"lisa_layers": 5}, r"finetune\.lisa_layers = 5: the model has 4 layers"),
    ],
)
def test_a_method_that_the_model_has_no_layers_for_is_one_line(method, settings, message):
    with pytest.raises(UserError, match=message):
        scope_of(method_of(method), FreezePlan.model_validate(artifact()), params(**settings), seed=1, first_n=1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_saved_once_and_frozen_shards_keep_their_bytes(tmp_path, examples, tied):
    base, folder, _, rewritten = trained_and_saved(tmp_path, examples, "salf", tied=tied, boundary=2)
    stored = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
    assert (HEAD in stored) != tied
    assert stored[EMBEDDING] == "embedding.safetensors"
    assert rewritten == ["layer-03", "layer-04", "final"]
    assert set(changed_shards(base, folder)) == set(rewritten)


def test_a_tied_matrix_gets_the_gradients_of_both_its_uses(examples):
    """At boundary 0; against the two gradients that an untied copy of the network gets from its own forward."""
    tied, untied = tiny(tied=True), tiny(tied=False)
    untied.load_state_dict(tied.state_dict())
    model, batch = CausalModel(tied, family_of("llama")), Batch.of(examples, range(8), SHARED)
    start = Embeddings.after(model, examples[0].prompt_ids[:SHARED])
    training_logits(model, start, batch).square().sum().backward()
    for example in examples:
        logits = untied(torch.tensor([list(example.inputs)])).logits[0, len(example.prompt_ids) - 1 :]
        logits.square().sum().backward()
    both = untied.model.embed_tokens.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(tied.lm_head.weight.grad, both, rtol=1e-4, atol=1e-5 * float(both.abs().max()))
