"""Quantisation-aware training against naive loops, dense rotations, closed forms and transformers itself."""

from functools import reduce
from math import prod

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime
from salf.engine.techniques.roste import Quantisation, Quantised, Site, on_grid, quantised, rotated
from salf.engine.training.checkpoint import Training
from salf.engine.training.forms import Trainable
from salf.families import FAMILIES, family_of
from salf.hadamard import factors, hadamard
from salf.methods import method_of
from salf.settings import Roste
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import (
    RUNTIME,
    KilledError,
    assert_equal_weights,
    killed_at,
    made_examples,
    params,
    run,
    scope_above,
    stepper_of,
)
from tests.finetune.test_delivered import base as base  # a fixture
from tests.finetune.test_delivered import delivered

EXAMPLES = made_examples()
BOUNDARY = 2
IDS = torch.tensor([[5, 6, 7, 20, 30, 40, 50, 60]])
OFF = {"weight_bits": None, "activation_bits": None, "kv_bits": None}


def settings_of(rotation="adaptive", **changes):
    own = {name: changes.pop(name) for name in list(changes) if name in Roste.model_fields}
    return params(roste=Roste(rotation=rotation, **own), schedule="constant", warmup_share=0.0, **changes)


def made(settings, kind="llama", seed=1, method="half+roste", **sizes):
    model = CausalModel(tiny_network(kind, **sizes), family_of(kind))
    return Trainable.of(model, method_of(method), scope_above(BOUNDARY), settings, seed, steps=6)


def naive(groups, bits, clip=1.0):
    """A group at a time, a value at a time."""
    rows = groups.detach().double().reshape(-1, groups.shape[-1]).tolist()
    for row in rows:
        step = clip * (max(row) - min(row)) / (2**bits - 1)
        zero = round(-min(row) / step) if step else 0
        for at, value in enumerate(row):
            level = min(max(round(value / step) + zero, 0), 2**bits - 1) if step else None
            row[at] = (level - zero) * step if step else value
    return torch.tensor(rows, dtype=torch.float64).reshape(groups.shape)


def dense(signs):
    """The rotation of a site as a matrix."""
    blocks, orders = factors(len(signs))
    whole = reduce(np.kron, map(hadamard, orders), np.eye(blocks)) / prod(orders) ** 0.5
    return torch.from_numpy(signs.double().numpy()[:, None] * whole)


@pytest.mark.parametrize("clip", [1.0, 0.9])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_grid_is_that_of_a_loop_over_groups(bits, clip):
    groups = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(bits), dtype=torch.float32)
    groups[0], groups[1, 0], groups[2] = groups[0] + 9, 0.3, -groups[2].abs() - 1
    found = on_grid(groups, bits, clip)
    torch.testing.assert_close(found.double(), naive(groups, bits, clip), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1, 0], groups[1, 0])
    assert all(len(row.unique()) <= 2**bits for row in found.flatten(0, 1))
    if clip == 1.0:
        step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
        assert ((found - groups).abs().amax(-1) <= step / 2 * (1 + 1e-4)).all()
        torch.testing.assert_close(on_grid(found, bits), found, rtol=1e-5, atol=1e-5)


def test_rotation_tames_an_outlier():
    row = torch.randn(1, 576, generator=torch.Generator().manual_seed(0))
    row[0, 7] = 40.0
    signs = torch.randint(2, (576,), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    plain, turned = ((on_grid(each, 4) - each).square().sum() for each in (row, rotated(row, signs)))
    assert plain > 300
    assert turned < plain / 10


@pytest.mark.parametrize("rotation", ["all", "none"])
def test_gradients_go_straight_through_in_closed_form(rotation):
    """Of half of (<Q(Rx), Q(Rw)> - y)²: (<Q(Rx), Q(Rw)> - y)·RᵀQ(Rx), and the same the other way round."""
    part = nn.Linear(12, 1, bias=False)
    network = nn.Sequential(part)
    signs = torch.tensor([1.0, -1.0] * 6)
    Site("inputs", ["0"], signs, Roste(rotation=rotation, weight_bits=3, activation_bits=4)).attach(network)
    rows, y = torch.randn(1, 12, requires_grad=True), 0.7
    (0.5 * (network(rows) - y).square()).sum().backward()
    turn = dense(signs) if rotation == "all" else torch.eye(12, dtype=torch.float64)
    weight = part.parametrizations.weight.original
    x, w = naive(rows.double() @ turn, 4), naive(weight.double() @ turn, 3)
    off = (x * w).sum() - y
    torch.testing.assert_close(weight.grad.double(), off * (x @ turn.T), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows.grad.double(), off * (w @ turn.T), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "phi"])
def test_without_grids_rotations_change_no_logits_and_no_gradients(kind):
    rotating = made(settings_of("all", weight_bits=None, activation_bits=None, kv_bits=16), kind)
    for site in rotating.form.sites:
        site.bits = None
    plain = tiny_network(kind)
    networks = (plain, rotating.model.network.eval())
    logits = [network(IDS).logits for network in networks]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    for each in logits:
        each.square().sum().backward()
    rotating.form.fold()
    theirs, ours = (dict(network.named_parameters()) for network in networks)
    assert rotating.form.names <= theirs.keys()
    for name in rotating.form.names:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


class NaiveMap(nn.Module):
    """A linear map with dense rotations and loops for grids."""

    def __init__(self, part, turn, asked):
        super().__init__()
        self.part, self.turn, self.asked = part, turn, asked

    def forward(self, rows):
        weight = self.part.weight.T if isinstance(self.part, Conv1D) else self.part.weight
        x, w = (
            naive(rows.double() @ self.turn, self.asked.activation_bits),
            naive(weight.double() @ self.turn, self.asked.weight_bits),
        )
        return (x @ w.T + (0 if self.part.bias is None else self.part.bias)).float()


def naive_attention(module, query, key, value, mask, scaling=None, **_):
    """Plain causal attention in float64 with naive grids."""
    (left, right), bits = module.naive_turns
    key, value = naive(key.double() @ left, bits), naive(value.double() @ right, bits)
    repeats = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(repeats, dim=1) for one in (key, value))
    scores = query.double() @ left @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    shares = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return (shares @ value @ right.T).transpose(1, 2).float(), None


AttentionInterface.register("naive", naive_attention)


def reference(trainable, kind="llama"):
    """The same network by naive parts, with the rotations that were chosen."""
    network, asked = tiny_network(kind, attention="naive"), trainable.form.asked
    network.load_state_dict(tiny_network(kind).state_dict())
    plain = torch.eye(8, dtype=torch.float64)
    for layer in network.model.layers:
        layer.self_attn.naive_turns = (plain, plain), 24
    for site in trainable.form.sites:
        turn = dense(site.signs) if site.rotates else torch.eye(len(site.signs), dtype=torch.float64)
        for name in site.names:
            part = network.get_submodule(name)
            if site.reads == "inputs":
                parent, _, own = name.rpartition(".")
                setattr(network.get_submodule(parent), own, NaiveMap(part, turn, asked))
            else:
                turns = dict(zip(("keys", "values"), part.naive_turns[0], strict=True)) | {site.reads: turn}
                part.naive_turns = (turns["keys"], turns["values"]), asked.kv_bits
    return network


@pytest.mark.parametrize("bits", [(4, 6, 16), (16, 16, 4)])
@pytest.mark.parametrize("rotation", ["all", "none", "adaptive"])
def test_the_network_computes_with_rotated_grids_in_every_pass(rotation, bits):
    """To a tenth of what grids change: in float32 a sum's last digit may decide between two levels."""
    settings = settings_of(rotation, **dict(zip(OFF, bits, strict=True)))
    trainable = made(settings)
    stepper = stepper_of(trainable, EXAMPLES, settings)
    stepper.begin(Training())
    naively = reference(trainable)
    with torch.no_grad():
        plain, ours, theirs = (each(IDS).logits for each in (tiny_network(), trainable.model.network, naively))
    assert (ours - theirs).abs().max() < (ours - plain).abs().max() / 10
    # Packed rows of training, without the batch's padding.
    split = stepper.job.training
    with torch.no_grad():
        ours, theirs = float(stepper.objective(split.batch(range(4)))), 0.0
    for example in EXAMPLES[:4]:
        logits = naively(torch.tensor([list(example.inputs)])).logits[0, len(example.prompt_ids) - 1 :]
        theirs += float(nn.functional.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="sum").detach())
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_rotation_is_chosen_where_it_lowers_the_error_of_loops_over_full_precision_activations():
    """Inputs as transformers gives them, an example at a time; the third layer is the first above the boundary."""
    settings = settings_of(calibration=12, weight_bits=3, activation_bits=3, kv_bits=3)
    trainable, network = made(settings), tiny_network("llama")
    done = Training()
    stepper_of(trainable, EXAMPLES, settings).begin(done)
    chosen = [site for site in trainable.form.sites if site.reads == "inputs" and ".2." in site.names[0]]
    assert [[name.rpartition(".")[2] for name in site.names] for site in chosen] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    read = {}
    for site in chosen:
        network.get_submodule(site.names[0]).register_forward_pre_hook(
            lambda _part, given, name=site.names[0]: read.setdefault(name, []).append(given[0][0].detach())
        )
    for example in EXAMPLES:
        network(torch.tensor([list(example.inputs)]))
    for site in chosen:
        errors = []
        for turn in (torch.eye(len(site.signs), dtype=torch.float64), dense(site.signs)):
            maps = [network.get_submodule(name).weight.double() @ turn for name in site.names]
            # The rows that examples share run once for a batch of four.
            shared = [read[site.names[0]][at][:3] for at in range(0, len(EXAMPLES), 4)]
            rows = [rows.double() @ turn for rows in (*shared, *(rows[3:] for rows in read[site.names[0]]))]
            off = [(naive(each, 3) - each).square().sum() for each in (*maps, *rows)]
            errors.append(float(sum(off[: len(maps)]).detach() + sum(off[len(maps) :]) / len(EXAMPLES)))
        ours = (site.measured[1] + site.measured[0] / len(EXAMPLES))[:, 0].tolist()
        assert ours == pytest.approx(errors, rel=1e-3)
        assert bool(site.rotates) == (errors[1] < errors[0])
    assert 0 < done.observed["share of sites rotated"] < 1
    assert done.flops_before == done.flops > 0


def test_without_grids_and_rotations_training_is_plain_bit_for_bit():
    settings = settings_of("none", **OFF, accumulate=2)
    ours, plain = (made(settings, method=method) for method in ("half+roste", "half"))
    found, expected = (run(each, EXAMPLES, settings) for each in (ours, plain))
    assert [point.validation_loss for point in found.curve] == [point.validation_loss for point in expected.curve]
    ours.form.fold()
    assert_equal_weights(plain, ours)


def test_a_killed_training_resumes_to_the_same_bits(tmp_path, monkeypatch):
    settings, checkpoint = settings_of(checkpoint_minutes=0.0), tmp_path / "unfinished.safetensors"
    whole, first, second = (made(settings) for _ in range(3))
    expected = run(whole, EXAMPLES, settings)
    with monkeypatch.context() as patch:
        killed_at(patch, 4)
        with pytest.raises(KilledError):
            run(first, EXAMPLES, settings, checkpoint=checkpoint)
    found = run(second, EXAMPLES, settings, checkpoint=checkpoint)
    assert (found.curve, found.flops, found.observed) == (expected.curve, expected.flops, expected.observed)
    folders = [tmp_path / name for name in ("whole", "second")]
    for trainable, folder in zip((whole, second), folders, strict=True):
        folder.mkdir()
        trainable.form.save(folder, "", None)
        trainable.form.fold()
    assert_equal_weights(whole, second)
    records = [(folder / "quantisation.json").read_bytes() for folder in folders]
    assert records[0] == records[1]


@pytest.mark.parametrize("rotation", ["adaptive", "all"])
def test_the_folder_reopens_to_the_quantised_model_and_transformers_alone_opens_its_weights(
    base, rotation, monkeypatch
):
    own = {"weight_bits": 4, "activation_bits": 8, "kv_bits": 4, "rotation": rotation, "calibration": 1}
    trained = {}
    fold = Quantised.fold

    def folding(form):
        with torch.no_grad():
            trained["logits"] = form.network(IDS[:, :6]).logits
        return fold(form)

    monkeypatch.setattr(Quantised, "fold", folding)
    folder = delivered(base, "salf+roste", roste=Roste(**own))
    for unit in ("embedding", "layer-01", "layer-02"):
        assert (folder / f"{unit}.safetensors").read_bytes() == (base / f"{unit}.safetensors").read_bytes()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    reopened = quantised(AutoModelForCausalLM.from_pretrained(folder), folder)
    with torch.no_grad():
        torch.testing.assert_close(reopened(IDS[:, :6]).logits, trained["logits"], rtol=1e-4, atol=1e-4)
        assert (plain(IDS[:, :6]).logits - trained["logits"]).abs().max() > 1e-3
        # Keys and values are in the cache at full precision, and on the same grids whenever they are read.
        with_cache, without = (
            reopened.generate(IDS[:, :6], max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=flag)
            for flag in (True, False)
        )
    assert torch.equal(with_cache, without)
    record = Quantisation.load(folder)
    assert {site.reads for site in record.sites} == {"inputs", "keys", "values"}
    assert len(record.sites) == 2 * 6
    assert any(site.signs for site in record.sites)


SITED = [kind for kind, family in FAMILIES.items() if family.packed and not family.build.experts]


@pytest.mark.parametrize("kind", SITED)
def test_maps_of_a_site_read_the_same_tensor_in_every_family(kind):
    trainable, read = made(settings_of("none"), kind), {}
    network = trainable.model.network.eval()
    for site in trainable.form.sites:
        for name in site.names if site.reads == "inputs" else []:
            network.get_submodule(name).register_forward_pre_hook(
                lambda _part, given, name=name: read.update({name: given[0]}), prepend=True
            )
    network(IDS % 40)
    linear = {name for name, part in network.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    assert read.keys() == {name for name in linear if (trainable.model.family.layer_index(name) or 0) >= BOUNDARY}
    for site in trainable.form.sites:
        if site.reads == "inputs":
            assert len({id(read[name]) for name in site.names}) == 1
            assert read[site.names[0]].shape[-1] == len(site.signs)
        else:
            assert [hasattr(network.get_submodule(name), "layer_idx") for name in site.names] == [True]


@pytest.mark.parametrize("method", ["half+roste", "half+sift"])
def test_recomputed_layers_give_the_same_gradients_bit_by_bit(method):
    found = []
    for recompute in (False, True):
        settings = settings_of("all", gradient_checkpointing=recompute)
        trainable = made(settings, method=method)
        run(trainable, EXAMPLES, settings)
        found.append(trainable)
        trainable.form.fold()
    assert_equal_weights(*found)


@pytest.mark.parametrize("method", ["half+roste", "half+sift"])
def test_in_bfloat16_training_goes_the_same_way(method):
    coarse = Runtime(torch.device("cpu"), torch.bfloat16, "test")
    losses = [
        run(
            made(settings_of("all", weight_bits=8, activation_bits=8), method=method),
            EXAMPLES,
            settings_of(),
            runtime=runtime,
        )
        for runtime in (RUNTIME, coarse)
    ]
    first, second = (each.curve[-1].validation_loss for each in losses)
    assert first == pytest.approx(second, rel=0.02)
    assert first < losses[0].curve[0].validation_loss


def test_a_model_in_memory_goes_on_to_compute_as_it_trained():
    settings = settings_of("all")
    trainable = made(settings)
    run(trainable, EXAMPLES, settings)
    opened = trainable.form.opened(trainable.model.network.eval())
    with torch.no_grad():
        on_grids = opened(IDS).logits
        trainable.form.fold()
        assert (trainable.model.network(IDS).logits - on_grids).abs().max() > 1e-3
