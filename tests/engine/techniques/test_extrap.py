"""Extrapolation against closed forms: AdamW with a huge epsilon and no memory is plain gradient descent."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from salf.engine.techniques.extrap import Extrapolated
from salf.engine.training.processes import ALONE
from salf.settings import Extrapolation
from tests.engine.training.tiny_training import params

HUGE = 1e9
RATE = 0.1


def optimizer(parameter, direction, *, factor=1.0, descent=True, until=1.0, seed=3):
    """Over one parameter, for a run of 100 steps."""
    settings = params(weight_decay=0.0 if descent else 0.1, extrapolation=Extrapolation(factor=factor, until=until))
    trainable = SimpleNamespace(parameters=[parameter])
    job = SimpleNamespace(trainable=trainable, settings=settings, seed=seed, steps=100, processes=ALONE)
    found = Extrapolated(job, direction)
    for group in found.param_groups:
        group.update({"betas": (0.0, 0.0), "eps": HUGE, "lr": RATE * HUGE} if descent else {"lr": RATE})
    return found


def walk(parameter, rule, gradient, steps):
    """Take steps; return the points where gradients were computed."""
    points = []

    def closure():
        points.append(parameter.detach().clone())
        parameter.grad = gradient(parameter.detach()).clone()
        return 0.0

    for number in range(steps):
        for group in rule.param_groups:
            group["number"] = number
        rule.step(closure)
        rule.zero_grad()
    return points


@pytest.fixture
def start():
    return torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)


@pytest.fixture
def curvature():
    return torch.tensor([[0.5, 1.0], [2.0, 3.0]], dtype=torch.float64)


def test_past_gradients_with_factor_one_are_optimistic_gradient_descent(start, curvature):
    """The points z of the gradients: z' = z - 2·rate·g(z) + rate·g(z before); the first step is plain."""
    parameter = nn.Parameter(start.clone())
    points = walk(parameter, optimizer(parameter, "past"), lambda w: curvature * w, 8)
    torch.testing.assert_close(points[0], start, rtol=0, atol=0)
    before, now = torch.zeros_like(start), start
    for point in points[1:]:
        before, now = now, now - 2 * RATE * curvature * now + RATE * curvature * before
        torch.testing.assert_close(point, now, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_extragradient_shrinks_every_direction_of_a_quadratic_by_its_closed_form(factor, start, curvature):
    parameter = nn.Parameter(start.clone())
    points = walk(parameter, optimizer(parameter, "fresh", factor=factor), lambda w: curvature * w, 5)
    assert len(points) == 10
    shrunk = 1 - RATE * curvature + factor * RATE**2 * curvature**2
    torch.testing.assert_close(parameter.detach(), start * shrunk**5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", ["past", "fresh"])
def test_a_bilinear_game_converges_where_gradient_descent_diverges(direction):
    """min over x, max over y of x·y."""

    def gradient(w):
        return torch.stack([w[:, 1], -w[:, 0]], dim=1)

    ends = {}
    for factor in (0.0, 1.0):
        parameter = nn.Parameter(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
        walk(parameter, optimizer(parameter, direction, factor=factor), gradient, 100)
        ends[factor] = float(parameter.detach().norm())
    assert ends[1.0] < 2**0.5 < ends[0.0]


@pytest.mark.parametrize("direction", ["past", "fresh"])
def test_adamw_looks_ahead_along_what_it_would_divide_and_moves_the_weights_themselves(direction, start):
    """A loop over torch's AdamW, weight decay included, whose gradients are taken at points worked out by hand."""
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    scale = torch.tensor([[1.0, 30.0], [0.02, 5.0]], dtype=torch.float64)

    def gradient(w):
        return scale * w + torch.sin(w)

    walk(ours, optimizer(ours, direction, descent=False), gradient, 6)
    reference = torch.optim.AdamW([theirs], lr=RATE, weight_decay=0.1)
    past, second = None, torch.zeros_like(start)
    for step in range(1, 7):
        weight = theirs.detach().clone()
        if direction == "fresh":
            with_it, taken = 0.999 * second + 0.001 * gradient(weight) ** 2, step
            ahead = gradient(weight) / ((with_it / (1 - 0.999**taken)).sqrt() + 1e-8)
        else:
            ahead = 0 if past is None else past / ((second / (1 - 0.999 ** (step - 1))).sqrt() + 1e-8)
        theirs.grad = past = gradient(weight - RATE * ahead)
        second = 0.999 * second + 0.001 * past**2
        reference.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-9, atol=1e-12)


def test_noise_follows_from_seed_and_step_and_is_as_wide_as_the_rate():
    def points(seed, steps):
        parameter = nn.Parameter(torch.zeros(200, 200, dtype=torch.float64))
        rule = optimizer(parameter, "noise", descent=False, seed=seed)
        return walk(parameter, rule, torch.zeros_like, steps)

    one, same, other = points(3, 2), points(3, 2), points(4, 1)
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])
    assert float(one[0].std()) == pytest.approx(RATE, rel=0.02)
    assert abs(float(one[0].mean())) < 4 * RATE / 200


def test_it_ends_with_its_share_of_the_steps(start, curvature):
    parameter = nn.Parameter(start.clone())
    rule = optimizer(parameter, "fresh", until=0.02)
    assert len(walk(parameter, rule, lambda w: curvature * w, 5)) == 5 + 2
