"""Zeroth-order steps, against directions that are built as whole matrices, and against autograd's gradients."""

import copy
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from salf import cost
from salf.cost import Technique
from salf.engine.batches import Example
from salf.engine.boundary_cache.states import FrozenLayers
from salf.engine.models.adapter import CausalModel
from salf.engine.techniques.zeroth_order import Directions, ZerothOrder, gradient_shares, moved
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import train
from salf.engine.training.scope import Scope
from salf.engine.training.step import Stepper, backward
from salf.errors import UserError
from salf.families import FAMILIES, family_of
from salf.methods import method_of
from tests.engine.models.tiny import tiny_network
from tests.engine.training.test_answer_side_training import job as answer_job
from tests.engine.training.test_words import job_of_word, settings_of
from tests.engine.training.tiny_training import RUNTIME, stepper_of, weights

NAMES = ["lozo", "lozo-m", "mezo"]

IDS = torch.tensor([[3, 14, 15, 9, 26, 5]])


def directions_of(network, rank=2, number=0, **options):
    places = {p: place for place, p in enumerate(p for p in network.parameters() if p.requires_grad)}
    return Directions(places, seed=1, number=number, rank=rank, **options)


def by_hand(directions, parameter):
    """U Vᵀ as a matrix; all of the direction where it is dense."""
    left = directions.left(parameter)
    return left @ directions.right(parameter).T if directions.rank_of(parameter) else left


def with_adapters(network):
    network.requires_grad_(False)
    return get_peft_model(network, LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False))


@pytest.mark.parametrize("rank", [2, 0], ids=["low rank", "dense"])
@pytest.mark.parametrize("name", [*(name for name, family in FAMILIES.items() if family.packed), "adapters"])
def test_a_moved_network_computes_what_moved_weights_compute_and_keeps_its_own(name, rank):
    network = with_adapters(tiny_network()) if name == "adapters" else tiny_network(name)
    by_name = {n: p for n, p in network.named_parameters() if p.requires_grad}
    directions = directions_of(network, rank)
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad(), moved(network, directions, 0.1):
        found = network(IDS).logits
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    with torch.no_grad():
        plain = network(IDS).logits
        for parameter in by_name.values():
            parameter += 0.1 * by_hand(directions, parameter)
        expected = network(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, expected, rtol=0.01, atol=0.01)


class Quadratic(nn.Module):
    """F(W, b) = ½ ‖A W + b‖² + ⟨C, W⟩, of a linear map and its bias."""

    def __init__(self, rows=7, columns=5):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(columns, rows).double()
        self.inputs = torch.randn(columns, columns, dtype=torch.float64)
        self.slope = torch.randn(rows, columns, dtype=torch.float64)

    def forward(self, *, linear=False):
        outputs = self.map(self.inputs)  # [columns, rows]
        value = (self.slope * outputs.T).sum()
        return value if linear else value + outputs.square().sum() / 2


def optimizer_of(network, rank, rate=1.0, momentum=0.0, decay=0.0, interval=1, radius=1e-3, seed=1, train_bias=True):
    parameters = [p for p in network.parameters() if train_bias or p.ndim > 1]
    settings = SimpleNamespace(weight_decay=decay, lozo=SimpleNamespace(radius=radius, interval=interval))
    trainable = SimpleNamespace(parameters=parameters, model=SimpleNamespace(network=network))
    costs = SimpleNamespace(technique=Technique(directions=rank))
    return ZerothOrder(
        SimpleNamespace(trainable=trainable, seed=seed, rate=rate, settings=settings, costs=costs), momentum
    )


def step(optimizer, number, loss):
    for group in optimizer.param_groups:
        group["number"] = number
    return optimizer.step(lambda: float(loss()))


def gradients(network, **options):
    network.zero_grad()
    network(**options).backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("rank", [1, 2, 5, 0])
@pytest.mark.parametrize("radius", [1e-3, 1.0, 100.0])
def test_on_a_quadratic_a_step_is_the_true_slope_along_its_direction_at_every_radius(rank, radius):
    network = Quadratic()
    gradient, before = gradients(network), copy.deepcopy(network.state_dict())
    directions = directions_of(network, rank)
    along = {name: by_hand(directions, p) for name, p in network.named_parameters()}
    slope = sum((gradient[name] * direction).sum() for name, direction in along.items())
    step(optimizer_of(network, rank, rate=0.01, decay=0.3, radius=radius), 0, network)
    share = {"map.weight": min(rank, 5) or 1, "map.bias": 1}
    kept = {"map.weight": 1 - 0.01 * 0.3, "map.bias": 1}
    for name, parameter in network.named_parameters():
        expected = kept[name] * before[name] - 0.01 * slope / share[name] * along[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rank", [2, 4, 0])
def test_steps_average_to_the_gradient_with_the_second_moment_of_the_closed_form(rank):
    """E‖c/r · U Vᵀ‖² = (mn + 2(m + n + 1)/r + 2) ‖G‖² for V drawn with every U, mn + 2 for dense directions."""
    network, draws = Quadratic(), 2000
    optimizer = optimizer_of(network, rank, train_bias=False)
    start, weight = network.map.weight.detach().clone(), network.map.weight
    total, square = torch.zeros_like(start), 0.0
    for number in range(draws):
        step(optimizer, number, lambda: network(linear=True))
        moved_by = start - weight.detach()
        total, square = total + moved_by / draws, square + float(moved_by.square().sum()) / draws
        weight.data.copy_(start)
    gradient = gradients(network, linear=True)["map.weight"]
    size = float(gradient.square().sum())
    assert float((total * gradient).sum()) / size == pytest.approx(1, abs=0.1)
    assert float((total - gradient).square().sum()) / size < 0.05
    assert square / size == pytest.approx(35 + 2 + (26 / rank if rank else 0), rel=0.2)


def test_a_direction_follows_from_seed_step_and_place_and_its_right_side_lasts_an_interval():
    network = tiny_network()
    one, other, *_ = (p for p in network.parameters() if p.shape == (32, 32))
    by_step = [directions_of(network, number=number, interval=3) for number in range(6)]
    rights = [directions.right(one) for directions in by_step]
    assert all(torch.equal(right, rights[number - number % 3]) for number, right in enumerate(rights))
    assert torch.equal(by_step[4].right(one, before=True), rights[0])
    again = directions_of(network, number=4, interval=3)
    assert torch.equal(again.left(one), by_step[4].left(one))
    different = [*(d.left(one) for d in by_step), rights[0], rights[3], by_step[4].left(other), by_step[4].right(other)]
    assert len({tuple(each.flatten().tolist()) for each in different}) == len(different)


def test_momentum_is_a_mean_in_the_factors_and_a_new_right_side_takes_it_over():
    network, interval, beta, rate = Quadratic(), 3, 0.7, 0.01
    optimizer = optimizer_of(network, 2, rate, momentum=beta, interval=interval)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    mean = dict.fromkeys(weights, 0.0)
    for number in range(8):
        for name, parameter in network.named_parameters():
            parameter.data.copy_(weights[name])
        gradient, directions = gradients(network), directions_of(network, 2, number, interval=interval)
        named = dict(network.named_parameters())
        slope = sum((gradient[name] * by_hand(directions, p)).sum() for name, p in named.items())
        for name, p in named.items():
            if name == "map.weight" and number in (3, 6):
                mean[name] = mean[name] @ directions.right(p, before=True).T @ directions.right(p) / 5
            mean[name] = beta * mean[name] + (1 - beta) * slope * directions.left(p)
            whole = mean[name] @ directions.right(p).T / 2 if name == "map.weight" else mean[name]
            weights[name] = weights[name] - rate * whole
        step(optimizer, number, network)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-6, atol=1e-9)


def test_the_mean_is_taken_over_as_least_squares_would_in_wide_matrices():
    network = nn.Linear(3_000, 4, bias=False).double()
    weight = network.weight
    optimizer = optimizer_of(network, 2, momentum=0.5)
    before, after = (Directions(optimizer.places, 1, number, 2) for number in (0, 1))
    old = torch.randn(4, 2, dtype=torch.float64)
    optimizer.state[weight]["mean"] = old.clone()
    found = optimizer._mean(weight, after, torch.zeros_like(old)) / 0.5
    target = old @ before.right(weight).T  # [4, 3000]
    best = torch.linalg.lstsq(after.right(weight), target.T).solution.T
    torch.testing.assert_close(found, best, rtol=0, atol=0.1 * float(best.abs().max()))


def settings_for(name, **others):
    return settings_of(name, {"interval": 2}, **{"weight_decay": 0.0, **others})


def refuse_graphs(_tensor):
    raise AssertionError("a tensor was kept for back-propagation")


@pytest.mark.parametrize("method", ["full", "freeze-2", "full+lora", "full+answer", "freeze-2+answer+lora"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_keeps_no_graph_drops_nothing_and_follows_the_slope_of_back_propagation(name, method):
    make = answer_job if "answer" in method else job_of_word
    plain, ours = (make(each, settings_for(name), rate=1e-3) for each in (method, f"{method}+{name}"))
    parts = [ours.training.batch(part) for part in ([0, 1, 2, 3, 4, 5, 6], [7, 8])]
    plain.trainable.model.network.eval()
    objective, tokens = Stepper(plain).objective, sum(len(part.targets) for part in parts)
    expected = backward(lambda part: objective(part) / tokens, parts)
    before, stepper = [p.detach().clone() for p in ours.trainable.parameters], Stepper(ours)
    with torch.autograd.graph.saved_tensors_hooks(refuse_graphs, refuse_graphs):
        found = stepper.take(parts, 0.5, 0)
    assert found == pytest.approx(float(expected), rel=1e-3)
    optimizer = stepper.optimizer
    directions = Directions(optimizer.places, ours.seed, 0, optimizer.rank)
    along = [by_hand(directions, p) for p in ours.trainable.parameters]
    slope = sum(float((p.grad * one).sum()) for p, one in zip(plain.trainable.parameters, along, strict=True))
    for old, new, one in zip(before, ours.trainable.parameters, along, strict=True):
        per_rate = (directions.rank_of(new) or 1) * float(((old - new.detach()) * one).sum() / one.square().sum())
        assert per_rate / (1e-3 * (1 - optimizer.momentum)) == pytest.approx(slope, rel=0.01, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rate_no_bit_of_any_weight_changes(name):
    made = job_of_word(f"freeze-2+{name}", settings_for(name, weight_decay=0.1), rate=0.0)
    before = weights(made.trainable)
    train(made)
    assert all(torch.equal(weight, before[parameter]) for parameter, weight in weights(made.trainable).items())


@pytest.mark.parametrize("method", ["freeze-2+lozo", "freeze-2+answer+lozo"])
@pytest.mark.usefixtures("fused_attention")
def test_without_caches_frozen_layers_run_once_and_prompts_twice_as_counted(method, monkeypatch):
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)
    settings = settings_for("lozo")
    if "answer" in method:
        made = answer_job(method, settings, cached=False)
    else:
        made = job_of_word(method, settings, dropout=0.0)
        start = FrozenLayers.of_model(made.trainable.model, RUNTIME, 2, made.training.prefix)
        made = replace(made, training=replace(made.training, start=start))
    made = replace(made, costs=replace(made.costs, uncached=True, prompts_uncached="answer" in method))
    stepper, parts = Stepper(made), [made.training.batch(part) for part in ([0, 1, 2, 3], [4, 5])]
    with FlopCounterMode(display=False) as counter:
        stepper.take(parts, 0.01, 0)
    assert counter.get_total_flops() == made.costs.step(parts, 0, 6).total


def peak_bytes(method, settings, layers):
    """Most bytes that a step of AdamW or of a word holds at a time in addition to what was there before."""
    network = tiny_network(num_hidden_layers=layers, tie_word_embeddings=True, max_position_embeddings=512)
    rng = np.random.default_rng(0)
    examples = [Example(str(n), None, "", "", (5, 6, 7, *rng.integers(10, 90, size=200)), (4,)) for n in range(4)]
    scope = Scope(layers, 0, tuple(range(1, layers + 1)), embeddings=False)
    made = Trainable.of(CausalModel(network, family_of("llama")), method_of(method), scope, settings, 1, 6)
    stepper = stepper_of(made, examples, settings)
    parts = [stepper.job.training.batch(range(4))]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        stepper.take(parts, 1e-6, 0)
    changes = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_holds_the_activations_of_one_layer_whatever_the_depth(name):
    """Back-propagation holds more for every single layer than these steps hold for all of them."""
    settings = settings_for(name)
    first_order, ours = ([peak_bytes(m, settings, layers) for layers in (4, 8)] for m in ("full", f"full+{name}"))
    assert ours[0] == ours[1] < (first_order[1] - first_order[0]) / 4


def test_a_rank_above_every_matrix_is_refused():
    with pytest.raises(UserError, match=r"finetune\.lozo\.rank = 6: no trained matrix has more than rank 5"):
        optimizer_of(Quadratic(), 6)


def test_shares_of_a_gradient_are_those_of_numpys_singular_values():
    network = Quadratic()
    network().backward()
    (name, shares), *others = gradient_shares(network, ranks=(1, 2, 50)).items()
    squares = np.linalg.svd(network.map.weight.grad.numpy(), compute_uv=False) ** 2
    assert (name, others) == ("map.weight", [])
    assert shares == pytest.approx([squares[0] / squares.sum(), squares[:2].sum() / squares.sum(), 1.0], rel=1e-5)
