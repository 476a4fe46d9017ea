"""The costs of every boundary, against closed forms of their own."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from salf.cost import PLAIN, Flops, adapters
from salf.engine.batches import Batch, Example, Split
from salf.engine.boundary_cache.prompts import cache_prompts
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import choose_runtime
from salf.engine.training.costs import Costs, cut
from salf.engine.training.scope import Scope
from salf.families import family_of
from salf.records import PreparedSizes, SplitSize
from salf.settings import AnswerSide, Device
from salf.workload import BoundaryFlops, cost_model, prompt_cache_bytes
from tests.salf.test_cost import llama

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 6, 32, 56, 53
ROWS, TOKENS, SHARED, BATCH = 40, 25, 5, 16
EPOCHS = 2  # as params.yaml says
BATCHES = 3
LINEAR = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * INTERMEDIATE  # q, o; k, v; the gated part


def work(passes_of_the_shared=BATCHES):
    """Queries and attended keys, one token at a time: 40 rows of 20 own tokens behind 5 shared ones."""
    shared = [position + 1 for _ in range(passes_of_the_shared) for position in range(SHARED)]
    own = [position + 1 for _ in range(ROWS) for position in range(SHARED, TOKENS)]
    return len(shared + own), sum(shared + own)


def test_the_sums_are_those_of_counting_token_by_token(workspace):
    model = workspace.plan().cost_model
    assert (model.queries, model.attended) == work()
    assert (model.frozen_queries, model.frozen_attended) == work(1)
    assert (model.positions, model.rows, model.batch_rows) == (40, ROWS, BATCH)
    assert model.seen == ROWS * TOKENS  # one answer token each, at the last of its row's tokens


def test_flops_against_a_closed_form(workspace):
    queries, attended = work()
    layer = 2 * LINEAR * queries + 4 * HIDDEN * attended
    frozen_queries, frozen_attended = work(1)
    frozen = 2 * LINEAR * frozen_queries + 4 * HIDDEN * frozen_attended
    head = 2 * HIDDEN * VOCABULARY * ROWS
    # The last layer: keys and values of all tokens and everything at the answers, forward and back; besides,
    # forward alone, the queries of all tokens and keys and values of the answers, which nothing uses.
    square, kv = HIDDEN * HIDDEN, HIDDEN * HIDDEN  # q; k and v together, each of half the width
    used = 2 * (kv * queries + (LINEAR - kv) * ROWS) + 4 * HIDDEN * ROWS * TOKENS
    last_forward = used + 2 * (square * queries + kv * ROWS)
    last = last_forward + 2 * used
    for point in workspace.plan().frontier:
        k = point.boundary
        epoch = (2 if k else 3) * head  # a tied head's gradient: only with the embeddings
        if k < LAYERS:
            epoch += 3 * (LAYERS - k - 1) * layer + last
        assert point.flops_frozen == k * frozen
        assert point.flops_epoch == epoch
        assert point.flops == k * frozen + EPOCHS * epoch
        forward = (LAYERS - k - 1) * layer + last_forward + head if k < LAYERS else head
        assert point.flops_backward == EPOCHS * (epoch - forward)
        assert point.flops_uncached == EPOCHS * (k * frozen + epoch)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("packed", "parts"), [(True, 1), (True, 3), (False, 1)])
@pytest.mark.parametrize(
    ("technique", "boundary"), [*[(PLAIN, k) for k in range(5)], *[(adapters(3), k) for k in range(4)]]
)
def test_what_a_plan_foresees_is_what_training_counts(technique, boundary, packed, parts, recompute):
    """Of rows of one length, 4 of 10 tokens shared, 2 of the answer; of unequal ones the plan knows the mean."""
    shape = replace(llama(tie_word_embeddings=True)[1], packed=packed)
    rows = [Example(f"{n}", None, "", "", tuple(range(9)), (11, 12)) for n in range(6)]
    sizes = PreparedSizes(splits={"train": SplitSize(rows=6, tokens=60, answer_tokens=12)}, shared_prefix_tokens=4)
    costs = Costs(shape, Scope.above(boundary, shape.layers), technique, recompute)
    batches = [[Batch.of(rows, part, 4) for part in cut(range(at, min(at + 4, 6)), parts)] for at in (0, 4)]
    frozen, epoch = costs.frozen(Split(rows, 4)), sum(map(costs.step, batches), Flops())
    work = cost_model(sizes, EPOCHS, 4, parts=parts, packed=packed, recompute=recompute, lora_rank=3)
    planned = BoundaryFlops.of(shape, work, boundary, technique)
    assert planned == BoundaryFlops(frozen, epoch)
    assert planned.cached(EPOCHS) == frozen + EPOCHS * epoch.total


@pytest.mark.parametrize(
    ("boundary", "extra", "parts", "recompute"), [(0, 0, 1, False), (0, 2, 2, True), (2, 1, 1, False)]
)
def test_what_a_plan_foresees_of_answers_alone_is_what_training_counts(boundary, extra, parts, recompute):
    """The base reads 7 of 9 prompt tokens, ``extra`` fewer; rows of one length, 4 tokens shared."""
    shape = llama(tie_word_embeddings=True)[1]
    rows = [Example(f"{n}", None, "", "", tuple(range(9)), (11, 12), field_end=7) for n in range(6)]
    train = SplitSize(rows=6, tokens=60, answer_tokens=12, field_tokens=42)
    side = AnswerSide(extra=extra)
    split = Split(rows, 4).after_prompts(side)
    scope = Scope(4, boundary, tuple(range(boundary + 1, 5)), embeddings=False)
    costs = Costs(shape, scope, recompute=recompute)
    batches = [[split.batch(part) for part in cut(range(at, min(at + 4, 6)), parts)] for at in (0, 4)]
    sizes = PreparedSizes(splits={"train": train}, shared_prefix_tokens=4)
    work = cost_model(sizes, EPOCHS, 4, parts=parts, recompute=recompute, answer_side=side)
    planned = BoundaryFlops.on_answers(shape, work, boundary)
    assert planned == BoundaryFlops(costs.frozen(split), sum(map(costs.step, batches), Flops()))
    base = CausalModel(llama(tie_word_embeddings=True)[0], family_of("llama"))
    kept = cache_prompts(base, choose_runtime(Device(kind="cpu", dtype="float32")), split, 99).rows
    assert prompt_cache_bytes(shape, work, 0, 4) == kept.nbytes


def test_shares_follow_the_stated_formula(workspace):
    frontier = workspace.plan().frontier
    whole = frontier[0]
    assert whole.flops_share == whole.flops_share_uncached == whole.flops_share_many_epochs == 1
    for point in frontier:
        one, many = point.flops_share_uncached, point.flops_share_many_epochs
        assert point.flops_share == pytest.approx(many + (one - many) / EPOCHS)
        assert point.flops_share == pytest.approx(point.flops / whole.flops)
        assert point.flops_backward_share == pytest.approx(point.flops_backward / whole.flops_backward)
        assert many <= point.flops_share <= one


def test_lora_has_its_rank_from_the_parameters_and_its_shares_of_full_fine_tuning(workspace):
    *points, last = workspace.plan({"lora_rank": 4}).frontier
    whole = points[0]
    assert last.lora is None
    for point in points:
        lora = point.lora
        assert lora.flops_share == pytest.approx(lora.flops / whole.flops)
        assert lora.flops_backward_share == pytest.approx(lora.flops_backward / whole.flops_backward)
        assert 0 < lora.flops_backward < point.flops_backward
    thicker = workspace.plan({"lora_rank": 8}).frontier
    assert all(more.lora.flops > point.lora.flops for more, point in zip(thicker, points, strict=False))


def test_parameters_and_bytes(workspace):
    plan = workspace.plan()
    per_layer = LINEAR + 2 * HIDDEN
    for point in plan.frontier[1:]:
        trained = (LAYERS - point.boundary) * per_layer + HIDDEN
        assert point.trained_parameters == trained
        assert (point.optimizer_bytes, point.gradient_bytes) == (8 * trained, 4 * trained)
    assert plan.frontier[0].trained_parameters == LAYERS * per_layer + HIDDEN + VOCABULARY * HIDDEN
    assert plan.parameters.trained == plan.frontier[5].trained_parameters
    assert plan.parameters.frozen + plan.parameters.trained == plan.parameters.total


def test_an_untied_head_trains_with_every_plan_and_costs_its_gradient(workspace):
    tied = workspace.plan()
    workspace.untie()
    untied = workspace.plan()
    assert untied.head_trained
    assert not tied.head_trained
    assert "both stay frozen" in tied.head_note
    head = 2 * HIDDEN * VOCABULARY * ROWS
    for own, shared in zip(untied.frontier[1:], tied.frontier[1:], strict=True):
        assert own.flops_epoch - shared.flops_epoch == head
        assert own.trained_parameters - shared.trained_parameters == VOCABULARY * HIDDEN


def test_memory_falls_with_the_boundary_and_the_cache_appears_with_it(workspace):
    frontier = workspace.plan().frontier
    kept = [point.activation_bytes for point in frontier]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0
    assert frontier[0].cache_bytes == 0
    assert {point.cache_bytes for point in frontier[1:]} == {work(1)[0] * HIDDEN * 4}


def test_with_gradient_checkpointing_a_layer_more_holds_its_input_and_costs_a_forward_pass_more(workspace):
    kept, anew = workspace.plan(), workspace.plan({"gradient_checkpointing": True})
    queries, attended = work()
    row = 4 * HIDDEN * queries / BATCHES  # of float32 states
    inputs = [high.activation_bytes - low.activation_bytes for high, low in pairwise(anew.frontier[:-2])]
    assert inputs == [pytest.approx(row, abs=1)] * (LAYERS - 2)
    # One layer trains: it runs again, and what it holds is there beside its input.
    assert anew.frontier[-2].activation_bytes - kept.frontier[-2].activation_bytes == pytest.approx(row, abs=1)
    last = anew.frontier[-1]
    assert (last.activation_bytes, last.flops) == (0, kept.frontier[-1].flops)  # nothing goes back through a layer
    # The last product of a layer's feed-forward part is not read again.
    again = 2 * (LINEAR - HIDDEN * INTERMEDIATE) * queries + 4 * HIDDEN * attended
    more = [ours.flops_epoch - theirs.flops_epoch for ours, theirs in zip(anew.frontier, kept.frontier, strict=True)]
    assert [high - low for high, low in pairwise(more[:-1])] == [again] * (LAYERS - 1)
    assert any("checkpointing" in words for words in anew.cost_model.assumptions)


def test_predicted_is_the_laws_value_where_it_reaches_and_the_observed_one_elsewhere(workspace):
    points = workspace.plan().frontier
    observed = [1.00, 0.97, 0.98, 0.96, 0.90, 0.78, 0.74]
    assert [point.observed for point in points] == observed
    assert [point.predicted for point in points] == observed[:3] + [pytest.approx(x + 0.001) for x in observed[3:]]
    workspace.rewrite_law(fits=False)
    assert [point.predicted for point in workspace.plan().frontier] == observed


def test_remaining_reduction_and_the_efficient_boundaries(workspace):
    points = workspace.plan().frontier
    expected = [1, 1, 0.24 / 0.23, 0.22 / 0.23, 0.16 / 0.23, 0.04 / 0.23, 0]
    assert [point.remaining_reduction for point in points] == pytest.approx(expected)
    # Boundary 2 costs less than 0 and 1 and leaves more of the reduction to be trained.
    assert [point.efficient for point in points] == [False, False, True, True, True, True, True]


def test_a_quantity_that_rises_has_no_reduction_to_share_out(workspace):
    text = workspace.law.read_text().replace("0.74", "1.2")
    workspace.law.write_text(text)
    points = workspace.plan().frontier
    assert {point.remaining_reduction for point in points} == {None}
    assert [point.boundary for point in points if point.efficient] == [6]  # cost alone decides
    assert all(math.isfinite(point.flops_share) for point in points)
