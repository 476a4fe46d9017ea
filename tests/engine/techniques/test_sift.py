"""Sparse increments against a plain loop of PyTorch's own AdamW, NumPy's selection and transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from salf.engine.batches import training_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.training.forms import Trainable
from salf.families import family_of
from salf.methods import method_of
from salf.settings import Sift
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import (
    SHARED,
    KilledError,
    assert_equal_weights,
    killed_at,
    made_examples,
    params,
    run,
    scope_above,
    weights,
)
from tests.finetune.test_delivered import base as base  # a fixture
from tests.finetune.test_delivered import delivered

EXAMPLES = made_examples()
BOUNDARY = 2


def settings_of(share, select="gradient", **changes):
    return params(**{"sift": Sift(share=share, select=select), "schedule": "constant", "warmup_share": 0.0, **changes})


def sparse(settings, kind="llama", seed=1):
    model = CausalModel(tiny_network(kind), family_of(kind))
    return Trainable.of(model, method_of("half+sift"), scope_above(BOUNDARY), settings, seed, steps=6)


def matrices(network):
    """The layers' matrices above the boundary, by transformers' own names."""
    names = tuple(f"model.layers.{layer}." for layer in range(BOUNDARY, 4))
    return {name: p for name, p in network.named_parameters() if name.startswith(names) and p.ndim == 2}


def loss_of(network, examples):
    losses = []
    for example in examples:
        logits = network(torch.tensor([list(example.inputs)])).logits[0, len(example.prompt_ids) - 1 :]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="none"))
    return torch.cat(losses).mean()


def first_gradients():
    """Of the first batch, by transformers alone."""
    network = tiny_network("llama")
    index = next(iter(training_batches([len(e.inputs) - SHARED for e in EXAMPLES], 4, np.random.default_rng(1))))
    loss_of(network, [EXAMPLES[i] for i in index]).backward()
    return {name: weight.grad.numpy().ravel() for name, weight in matrices(network).items()}


def changed_entries(made):
    before = dict(tiny_network("llama").named_parameters())
    names = made.form.fold()
    after = dict(made.model.network.named_parameters())
    assert after.keys() == before.keys()
    differ = {name: (after[name] != before[name]).flatten().nonzero().flatten().tolist() for name in before}
    assert names == {name for name, places in differ.items() if places} == matrices(made.model.network).keys()
    return {name: places for name, places in differ.items() if places}


def test_all_entries_are_adamw_on_the_same_matrices_bit_for_bit():
    settings = settings_of(1.0, accumulate=2, epochs=7)
    ours = sparse(settings)
    model = CausalModel(tiny_network("llama"), family_of("llama"))
    plain = Trainable.of(model, method_of("half"), scope_above(BOUNDARY), settings, 1, steps=21)
    chosen = {id(p) for p in matrices(model.network).values()}
    for parameter in model.network.parameters():
        parameter.requires_grad = id(parameter) in chosen
    plain.parameters[:] = [p for p in plain.parameters if p.requires_grad]
    found, expected = run(ours, EXAMPLES, settings), run(plain, EXAMPLES, settings)
    assert found.steps == 21
    assert [point.validation_loss for point in found.curve] == [point.validation_loss for point in expected.curve]
    ours.form.fold()
    assert_equal_weights(plain, ours)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_entries_with_the_largest_first_gradients_change_and_no_other(share, accumulate):
    made = sparse(settings_of(share, accumulate=accumulate))
    found = run(made, EXAMPLES, settings_of(share, accumulate=accumulate))
    gradients = first_gradients()
    assert made.count == sum(int(share * g.size) + 1 for g in gradients.values())
    for name, places in changed_entries(made).items():
        size = int(share * gradients[name].size) + 1
        assert places == sorted(np.argpartition(-np.abs(gradients[name]), size - 1)[:size].tolist()), name
    tops = [np.sort(g**2)[::-1][: max(1, g.size // 100)].sum() for g in gradients.values()]
    expected = np.sqrt(sum(tops) / sum((g**2).sum() for g in gradients.values()))
    assert found.observed == {"gradient norm in the top 1% of entries": pytest.approx(expected, rel=1e-5)}


def test_training_is_a_loop_of_adamw_over_the_chosen_entries_alone():
    settings = settings_of(0.05, clip_norm=1e9)
    made = sparse(settings)
    run(made, EXAMPLES, settings)
    network, kept = tiny_network("llama"), {}
    for name, gradient in first_gradients().items():
        kept[name] = torch.from_numpy(np.argsort(-np.abs(gradient))[: int(0.05 * gradient.size) + 1].copy())
    values = {n: w.detach().flatten()[kept[n]].requires_grad_() for n, w in matrices(network).items()}
    optimizer = torch.optim.AdamW(values.values(), lr=0.01, weight_decay=settings.weight_decay)
    rng = np.random.default_rng(1)
    for _ in range(settings.epochs):
        for index in training_batches([len(e.inputs) - SHARED for e in EXAMPLES], 4, rng):
            network.zero_grad()
            loss_of(network, [EXAMPLES[i] for i in index]).backward()
            for name, weight in matrices(network).items():
                values[name].grad = weight.grad.flatten()[kept[name]]
            optimizer.step()
            for name, weight in matrices(network).items():
                weight.data.view(-1)[kept[name]] = values[name].detach()
    made.form.fold()
    for name, weight in weights(made).items():
        torch.testing.assert_close(weight, dict(network.named_parameters())[name], rtol=2e-3, atol=5e-4)


@pytest.mark.parametrize("select", ["random", "magnitude"])
def test_other_selections_are_by_the_seed_or_the_weights(select):
    made = [sparse(settings_of(0.1, select), seed=seed) for seed in (1, 1, 2)]
    index = [each.form.decided() for each in made]
    assert all(torch.equal(index[0][name], index[1][name]) for name in index[0])
    differ = any(not torch.equal(index[0][name], index[2][name]) for name in index[0])
    assert differ == (select == "random")
    if select == "magnitude":
        for name, weight in matrices(tiny_network("llama")).items():
            size = int(0.1 * weight.numel()) + 1
            expected = np.argsort(-np.abs(weight.detach().numpy().ravel()), kind="stable")[:size]
            assert index[0][name].tolist() == sorted(expected.tolist())
    assert run(made[0], EXAMPLES, settings_of(0.1, select)).observed == {}


def test_the_optimizer_holds_state_for_chosen_entries_alone():
    sizes = {}
    for share in (0.01, 1.0):
        made = sparse(settings_of(share))
        sizes[share] = run(made, EXAMPLES, settings_of(share)).optimizer_bytes
        steps = 4 * len(made.parameters)  # a counter of each parameter
        assert sizes[share] == 8 * made.count + steps
    assert sizes[0.01] < 0.05 * sizes[1.0]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3_moe"])
def test_other_builds_train_their_matrices_and_go_back_to_their_own_names(kind):
    settings = settings_of(0.1)
    made = sparse(settings, kind)
    before = dict(tiny_network(kind).named_parameters())
    run(made, EXAMPLES, settings)
    names = made.form.fold()
    after = dict(made.model.network.named_parameters())
    assert after.keys() == before.keys()
    assert names == {name for name in before if not torch.equal(before[name], after[name])}
    assert names
    assert all(before[name].ndim > 1 for name in names)


def test_a_killed_training_resumes_to_the_same_bits(tmp_path, monkeypatch):
    settings, checkpoint = settings_of(0.05, checkpoint_minutes=0.0), tmp_path / "unfinished.safetensors"
    whole, first, second = (sparse(settings) for _ in range(3))
    expected = run(whole, EXAMPLES, settings)
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(KilledError):
            run(first, EXAMPLES, settings, checkpoint=checkpoint)
    found = run(second, EXAMPLES, settings, checkpoint=checkpoint)
    again = sparse(settings)
    assert run(again, EXAMPLES, settings, checkpoint=checkpoint, until=6).observed == expected.observed
    assert (found.curve, found.flops, found.observed) == (expected.curve, expected.flops, expected.observed)
    for made in (whole, second, again):
        made.form.fold()
    assert_equal_weights(whole, second)
    assert_equal_weights(whole, again)


def test_the_folder_is_an_ordinary_model_that_differs_in_the_chosen_entries_of_the_layers_alone(base):
    folder = delivered(base, "salf+sift")
    before, after = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (base, folder))
    assert before.keys() == after.keys()
    shares = {name: float((before[name] != after[name]).float().mean()) for name in before}
    assert {name for name, share in shares.items() if share} == matrices(
        AutoModelForCausalLM.from_pretrained(base)
    ).keys()
    assert 0 < max(shares.values()) < 0.03
    for unit in ("embedding", "layer-01", "layer-02", "final"):
        assert (folder / f"{unit}.safetensors").read_bytes() == (base / f"{unit}.safetensors").read_bytes()
