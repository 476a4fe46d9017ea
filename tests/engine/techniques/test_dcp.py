"""Learned context pruning against bisection, naive products over queries, PyTorch's counter and generation by masks."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

import salf
from salf import cost
from salf.engine.batches import Example, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.techniques import dcp
from salf.engine.techniques.dcp import Interaction, interactions, kept_shares, sigmoid
from salf.engine.training import scope
from salf.engine.training.forms import Trainable
from salf.errors import UserError
from salf.families import FAMILIES, family_of
from salf.methods import method_of
from salf.settings import Dcp
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import made_examples, params, scope_above, stepper_of
from tests.finetune.test_delivered import base as base  # a fixture
from tests.finetune.test_delivered import delivered

EXAMPLES = made_examples()
BOUNDARY = 2
TEXT = torch.randint(3, 50, (1, 40), generator=torch.Generator().manual_seed(5))


def settings_of(**own):
    return params(dcp=Dcp(**{"width": 6, "bias": 0.5, **own}), schedule="constant", warmup_share=0.0)


def made(settings, kind="llama", **sizes):
    model = CausalModel(tiny_network(kind, **sizes), family_of(kind))
    trainable = Trainable.of(model, method_of("half+dcp"), scope_above(BOUNDARY), settings, 1, steps=6)
    for one in interactions(model.network):  # at their start they decide nearly alike everywhere
        one.query.data *= 3
    return trainable


@pytest.mark.parametrize("alpha", [1.0, 1.001, 1.5, 2.0, 3.0, 8.0])
def test_the_sigmoid_solves_its_equation_and_has_its_derivative(alpha):
    z = torch.linspace(-3, 3, 241).requires_grad_()
    p = sigmoid(z, alpha)
    (slope,) = torch.autograd.grad(p.sum(), z)
    power, wanted = alpha - 1, z.detach().double().numpy()
    if alpha == 1:
        found = 1 / (1 + np.exp(-wanted))
    else:
        low, high = np.zeros_like(wanted), np.ones_like(wanted)
        for _ in range(60):
            middle = (low + high) / 2
            below = middle**power - (1 - middle) ** power < power * wanted
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        found = high
    np.testing.assert_allclose(p.detach().numpy(), found, atol=2e-5)
    with torch.no_grad():
        away = 1e-2 if alpha < 4 else 1e-3
        by_differences = (sigmoid(z.double() + away, alpha) - sigmoid(z.double() - away, alpha)) / (2 * away)
    inside = (z.detach().abs() + 2 * away) * power < 1
    torch.testing.assert_close(slope[inside], by_differences[inside].float(), rtol=2e-2, atol=2e-3)
    assert (slope[(z.detach().abs()) * power > 1] == 0).all()


def naive(own, rows):
    """I of one sequence's rows [T, hidden], a token at a time."""
    tokens = len(rows)
    z = (rows @ own.query.T) @ (rows @ own.key.T).T * len(own.query) ** -0.5 + own.bias
    p = z.sigmoid() if own.training else (z > 0).float()
    kept = torch.ones(tokens, tokens)
    for i, j in itertools.product(range(tokens), repeat=2):
        for t in range(j + 1, i + 1):
            kept[i, j] = kept[i, j] * p[t, j]
    return kept


@pytest.mark.parametrize("training", [True, False])
def test_what_is_kept_is_a_product_over_later_tokens(training):
    own = Interaction(*torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3]))
    own.train(training)
    rows = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1))
    own.reads = rows
    with torch.no_grad():
        kept = own.decide(*own.rows().chunk(2, -1)).exp()
        for found, each in zip(kept, rows, strict=True):
            torch.testing.assert_close(found, naive(own, each).tril(), rtol=1e-4, atol=1e-5)
    assert ((kept >= 0) & (kept <= 1)).all()
    assert (kept.diff(dim=1).tril() <= 0).all()  # dropped once, dropped for good
    assert (kept.diagonal(dim1=1, dim2=2) == 1).all()


def test_training_ends_with_the_decisions_of_use():
    """At α = 8 a p between 0 and 1 has |z| < 1/7."""
    own = Interaction(*torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3]))
    rows = torch.randn(1, 30, 8)
    own.reads, own.alpha = rows, 8.0
    queries, keys = own.rows().chunk(2, -1)
    z = (queries @ keys.transpose(1, 2)) / 2 + own.bias
    sharp = ((z.abs() > 1 / 7) | torch.ones_like(z, dtype=torch.bool).triu()).cummin(1).values
    soft, hard = own.decide(queries, keys).exp(), own.eval().decide(queries, keys).exp()
    assert 0.05 < (sharp & (hard == 1)).float().mean() < 0.5
    torch.testing.assert_close(soft[sharp], hard[sharp])


def by_hand(network, ids):
    """Logits of one sequence by transformers' eager attention, whose scores get log I of naive products."""
    handles = []
    network.set_attn_implementation("eager")
    parts = [part for part in network.modules() if isinstance(getattr(part, "interaction", None), Interaction)]

    def mask(part, given, options):
        rows = given[0] if given else options["hidden_states"]
        kept = naive(part.interaction, rows[0]).log().clamp(min=-1e30)
        future = torch.full_like(kept, -1e30).triu(1)
        return given, {**options, "attention_mask": (kept + future)[None, None]}

    for part in parts:
        part.config._attn_implementation = "eager"
        handles.append(part.register_forward_pre_hook(mask, with_kwargs=True))
    logits = network(ids).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_packed_sequences_with_a_shared_beginning_are_those_of_a_naive_mask(kind, training):
    settings = settings_of(strength=0.7)
    trainable = made(settings, kind, **({"attention_dropout": 0.0} if kind == "llama" else {}))
    model, naively = trainable.model, made(settings, kind).model.network
    for network in (model.network, naively):
        network.eval()
        for one in interactions(network):
            one.train(training)
    stepper = stepper_of(trainable, EXAMPLES, settings)
    part = stepper.job.training.batch(range(4))
    stepper.objective.begin([part], 0)
    found = stepper.objective(part)
    expected, shares = 0.0, []
    for example in EXAMPLES[:4]:
        ids = torch.tensor([list(example.inputs)])
        logits = by_hand(naively, ids)[0, len(example.prompt_ids) - 1 :]
        expected += float(
            torch.nn.functional.cross_entropy(logits.detach(), torch.tensor(example.answer_ids), reduction="sum")
        )
        below = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril(-1)
        kept = [naive(own, own.reads[0].detach())[below].mean() for own in interactions(naively)]
        shares.append(torch.stack(kept).mean().detach())
    tokens = torch.tensor([len(example.answer_ids) for example in EXAMPLES[:4]])
    torch.testing.assert_close(kept_shares(model.network, part).mean(0), torch.stack(shares), rtol=1e-4, atol=1e-5)
    expected += 0.7 * float((torch.stack(shares) * tokens).sum())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def folder(base, monkeypatch):
    """A fine-tuned folder, whose interactions drop a good part of a text."""
    with monkeypatch.context() as patch:
        patch.setattr(
            dcp.Pruned, "begin", lambda form, *_: [one.query.data.mul_(3) for one in interactions(form.network)]
        )
        return delivered(base, "salf+dcp", dcp=Dcp(width=6, bias=1.0))


@torch.no_grad()
def test_the_folder_reopens_to_the_pruned_model_and_what_it_drops_leaves_the_store(base, folder):
    for unit in ("embedding", "layer-01", "layer-02"):
        assert (folder / f"{unit}.safetensors").read_bytes() == (base / f"{unit}.safetensors").read_bytes()
    dense = AutoModelForCausalLM.from_pretrained(folder)
    model = salf.pruned(AutoModelForCausalLM.from_pretrained(folder), folder)
    whole = model(TEXT, use_cache=False).logits
    assert (whole - dense(TEXT).logits).abs().max() > 1e-2
    torch.testing.assert_close(whole, by_hand(salf.pruned(AutoModelForCausalLM.from_pretrained(folder), folder), TEXT))
    # In pieces, of which the first is a prompt and the others continue it.
    cache = DynamicCache(config=model.config)
    pieces = TEXT.split([20, 1, 1, 5, *[1] * 13], dim=1)
    logits = [model(piece, past_key_values=cache).logits for piece in pieces]
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-4, atol=1e-4)
    assert cache.get_seq_length() == TEXT.shape[1]
    model(TEXT, use_cache=False)
    kept = [int(naive(own, own.reads[0])[-1].sum()) for own in interactions(model)]
    assert [layer.keys.shape[2] for layer in cache.layers] == [40, 40, *kept]
    assert [layer.values.shape[2] for layer in cache.layers] == [40, 40, *kept]
    assert all(0 < count < 36 for count in kept)
    with_cache, without = (
        model.generate(TEXT[:, :20], max_new_tokens=20, do_sample=False, eos_token_id=None, use_cache=flag)
        for flag in (True, False)
    )
    assert torch.equal(with_cache, without)
    batch = model(TEXT.view(2, 20), attention_mask=torch.tensor([[0] * 4 + [1] * 16, [1] * 20])).logits
    torch.testing.assert_close(batch[1:], model(TEXT[:, 20:], use_cache=False).logits, rtol=1e-4, atol=1e-4)
    coarse = model.to(torch.bfloat16)(TEXT.view(2, 20), attention_mask=torch.tensor([[0] * 4 + [1] * 16, [1] * 20]))
    assert coarse.logits[0, 4:].isfinite().all()
    with pytest.raises(UserError, match="generates one text at a time; or set use_cache to False"):
        model.generate(TEXT.view(2, 20), max_new_tokens=2)


def test_speed_and_store_are_measured_dense_against_pruned(folder):
    dense, model = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    models = {"dense": dense, "pruned": salf.pruned(model, folder)}
    dense, pruned = salf.generation_costs(models, TEXT[:, :20], 10, rounds=1).values()
    width = model.config.num_key_value_heads * model.config.head_dim
    assert dense[1] == 29 * 4 * 2 * width * 4  # four layers; the last token is never read
    assert dense[1] / 2 < pruned[1] < dense[1]
    assert min(dense[0], pruned[0]) > 0


def test_a_damaged_file_is_named(folder):
    file = folder / "pruning/interactions.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"interactions.safetensors: no interactions of this model; fine-tune it again"):
        salf.pruned(AutoModelForCausalLM.from_pretrained(folder), folder)


@pytest.mark.usefixtures("fused_attention")
def test_products_of_keys_are_counted_for_those_that_a_token_sees():
    """PyTorch counts the whole square, of which the declared cost is the causal half, as of attention."""
    settings = settings_of(width=5)
    trainable, tokens = made(settings), 24
    ids = np.random.default_rng(0).integers(3, 90, size=(2, tokens))
    examples = [Example(str(n), None, "", "", tuple(row[:1]), tuple(row[1:])) for n, row in enumerate(ids.tolist())]
    stepper = stepper_of(trainable, examples, settings, training=Split(examples, 0))
    part = stepper.job.training.batch([0, 1])
    stepper.objective.begin([part], 0)
    with FlopCounterMode(display=False) as counter:
        stepper.objective(part).backward()
    squares = 2 * 23**2  # the last token is not read
    shape, sums = stepper.job.costs.shape, cost.Sums(46, 23 * 24, 46, 23 * 24)
    attention = 3 * 4 * shape.attention_width * squares * 2
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] == attention + 3 * 2 * 5 * squares * 2
    declared = cost.interactions(shape, BOUNDARY, sums, width=5)
    maps = 3 * 4 * shape.hidden * 5 * 46 * 2
    assert declared.total - maps == 3 * 2 * 5 * (squares + 46) / 2 * 2


def test_it_is_refused_where_it_cannot_work():
    words = {name: f"data.task = {name}" for name in ("classification", "multiple-choice", "free")}
    for name, what in words.items():
        assert f"{what} cannot be combined with dcp: its prompts are short" in params().unfit("half+dcp", {name: what})
    assert params().unfit("half+dcp", {"text": "data.task = text"}) is None
    why = params(gradient_checkpointing=True).unfit("half+dcp", {})
    assert "finetune.gradient_checkpointing cannot be combined with dcp" in why
    with pytest.raises(UserError, match=r"half\+dcp: the plan freezes all 4 layers, so dcp has none"):
        scope.scope_above(method_of("half+dcp"), 4, 4)
    windowed = made(settings_of(), "mistral", sliding_window=8).model.network
    with pytest.raises(UserError, match="dcp: attention in a sliding window, or of capped scores"):
        windowed(TEXT)


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.packed])
def test_every_packed_family_drops_while_it_generates(kind):
    trainable = made(settings_of(bias=-2.0), kind)
    network = trainable.model.network.eval()
    if getattr(network.config, "sliding_window", None):
        pytest.skip("a sliding window, of capped scores in Gemma 2")
    cache = DynamicCache(config=network.config)
    with torch.no_grad():
        whole = network(TEXT, use_cache=False).logits
        both = [network(piece, past_key_values=cache).logits for piece in TEXT.split([30, *[1] * 10], dim=1)]
    torch.testing.assert_close(torch.cat(both, 1), whole, rtol=1e-3, atol=1e-3)
    assert any(layer.keys.shape[2] < 40 for layer in cache.layers[BOUNDARY:])
    trainable.form.fold()
    torch.testing.assert_close(network(TEXT).logits, tiny_network(kind)(TEXT).logits)
