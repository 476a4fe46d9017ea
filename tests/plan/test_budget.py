"""A budget in time or money: predicted seconds against a closed form, what they pay for, and the rates they rest on."""

import json
import re

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from salf import cost
from salf.engine import rates as engine_rates
from salf.engine.models.adapter import take_apart
from salf.engine.rates import _examples, _shallow, _time, measure_rates
from salf.engine.runtime import choose_runtime
from salf.errors import UserError
from salf.plan_records import Rates
from salf.records import PreparedSizes, SplitSize
from salf.settings import Device
from salf.shape import ModelShape
from salf.summary import summary
from salf.workload import cost_model
from stages.plan.__main__ import main

CPU = Device(kind="cpu", dtype="float32")
FROZEN, TRAINING, ANSWERS, BYTES = 2e8, 1e8, 5e7, 1e7
PREPARED = PreparedSizes(splits={"train": SplitSize(rows=40, tokens=1000, answer_tokens=80)}, shared_prefix_tokens=0)
RATES = Rates(
    frozen_flops_per_second=FROZEN,
    flops_per_second=TRAINING,
    answer_flops_per_second=ANSWERS,
    bytes_per_second=BYTES,
    machine={"device": "cpu"},
    about="ab",
)


@pytest.fixture
def timed(workspace, monkeypatch):
    """A workspace whose prepared data say where prompts end, on a machine of known rates."""
    meta = json.loads((workspace.prepared / "meta.json").read_text())
    meta["splits"]["train"]["field_tokens"] = 40 * 22
    (workspace.prepared / "meta.json").write_text(json.dumps(meta))
    monkeypatch.setattr("stages.plan.__main__.rates_here", lambda *_, **__: RATES)
    return workspace


def seconds_of(plan, shape):
    """Expected and predicted, from the frontier's own counts; an update moves 36 bytes: 4 x 9 in float32."""
    work, sums = plan.cost_model, plan.cost_model.answer
    updates = work.epochs * -(-work.rows // work.batch_rows)
    for point in plan.frontier:
        steps = work.epochs * point.flops_epoch / TRAINING
        yield point.flops_frozen / FROZEN + steps + updates * point.trained_parameters * 36 / BYTES, point.seconds
        if answer := point.answer:
            passes = cost.Sums(sums.queries, sums.attended, work.positions, work.seen)
            forward = cost.reading_flops(shape, point.boundary, passes)
            steps = answer.flops_backward + work.epochs * forward
            expected = (answer.flops - steps) / FROZEN + steps / ANSWERS
            yield expected + updates * answer.trained_parameters * 36 / BYTES, answer.seconds


def test_seconds_are_cached_passes_steps_and_updates_at_their_rates(timed):
    shape = ModelShape.from_config(json.loads((timed.base / "config.json").read_text()))
    pairs = list(seconds_of(timed.plan(budget="20 min"), shape))
    assert len(pairs) == 7 + 6
    for expected, found in pairs:
        assert found == pytest.approx(expected, rel=1e-6)
    free = timed.plan(budget=1.0)
    assert free.timed is None
    assert {point.seconds for point in free.frontier} == {None}


def test_time_and_its_price_pay_for_the_same_boundaries(timed):
    seconds = [point.seconds for point in timed.plan(budget="1 h").frontier]
    within = seconds[4] + 1e-6
    assert seconds[3] > within
    price = 3.6
    for budget in (f"{within / 60:.9f} min", f"{within / 3600:.9f} h", f"{within / 3600 * price:.9f} USD"):
        plan = timed.plan(budget=budget, price_per_hour=price, selector="affordable")
        assert plan.boundary == plan.timed.shallowest == 4
        assert plan.timed.shallowest_answer < 4
        assert (plan.timed.budget, plan.timed.rates) == (budget, RATES)
        assert plan.timed.seconds == pytest.approx(within)
        said = "\n".join(summary(plan))
        answers = plan.timed.shallowest_answer
        assert f"all positions from boundary 4 on; answers alone (+answer) from boundary {answers} on" in said
        half = timed.plan(budget=budget, price_per_hour=price, selector="half")
        assert half.boundary == 3  # a fixed depth is not moved
        assert f"more than plan.budget = {budget.split()[0][:3]}" in half.reason
        moved = half.boundaries["salf"]
        assert moved.boundary >= 4


def test_a_time_that_nothing_fits_is_refused_with_the_cheapest(timed):
    least = min(point.seconds for point in timed.plan(budget="9 h").frontier) / 60
    with pytest.raises(UserError, match=r"plan\.budget = 0\.0001 min: the cheapest boundary costs") as told:
        timed.plan(budget="0.0001 min")
    allowed = float(re.search(r"allowed here: ([\d.]+) min or more", str(told.value))[1])
    assert least <= allowed <= least + 0.001


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.usefixtures("fused_attention")
def test_rates_are_the_flops_that_pytorch_counts_over_the_seconds_they_took(workspace, monkeypatch, recompute, shared):
    """A clock that ticks once a look: every pass takes one second. PyTorch does not count its fused attention."""
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)
    clock = iter(range(99))
    monkeypatch.setattr(engine_rates, "_now", lambda _: next(clock))
    runtime = choose_runtime(CPU)
    network = _shallow(workspace.base, runtime)
    model, shape = take_apart(network), ModelShape.from_config(network.config.to_dict())
    work = cost_model(PREPARED, 1, 8, packed=True).model_copy(update={"shared": shared})
    split = _examples(work, work.queries, shared, 53)
    assert [len(split), split.shared, {*split.lengths}] == [
        8,
        shared,
        {24 if shared else 25},
    ]  # (1000 - 5 parts x shared) / 40
    with FlopCounterMode(display=False) as counter:
        frozen, training, update = _time(model, shape, runtime, split, recompute)
    assert counter.get_total_flops() == pytest.approx(4 * (frozen + training), rel=1e-3)
    trained = sum(parameter.numel() for parameter in model.layers.parameters())
    assert update == pytest.approx(36 * trained, rel=1e-3)


def test_a_deep_model_is_timed_by_its_first_layers(workspace, monkeypatch):
    monkeypatch.setattr(engine_rates, "_PARAMETERS", 1)
    network = _shallow(workspace.base, choose_runtime(CPU))
    config = AutoConfig.from_pretrained(workspace.base)
    whole = AutoModelForCausalLM.from_config(config)
    assert len(network.model.layers) == 2
    sizes = [sum(p.numel() for p in one.model.layers[0].parameters()) for one in (network, whole)]
    assert sizes[0] == sizes[1]


def test_the_stage_measures_in_a_process_of_its_own_and_once_on_the_same_machine(workspace, monkeypatch):
    first = workspace.plan(budget="9 h")
    assert min(value for name, value in first.timed.rates if name.endswith("per_second") and value) > 0
    written = (workspace.out / "freeze_plan.json").read_bytes()
    assert workspace.plan(budget="9 h") == first
    assert (workspace.out / "freeze_plan.json").read_bytes() == written

    known, work = first.timed.rates, first.cost_model
    device = Device(kind="auto", dtype="auto")  # as shipped
    assert measure_rates(workspace.base, device, work, known) == known
    elsewhere = known.model_copy(update={"machine": {**known.machine, "device": "another"}})
    other_work = work.model_copy(update={"queries": 2 * work.queries})
    monkeypatch.setattr(engine_rates, "_time", lambda *_, **__: (1.0, 2.0, 3.0))
    for given in ((work, elsewhere), (other_work, known), (work, None)):
        assert measure_rates(workspace.base, device, *given).flops_per_second == 2.0


@pytest.mark.parametrize(
    ("device", "finetune"), [({"frozen_weights": "nf4"}, {}), ({}, {"processes": 2})], ids=["weights", "processes"]
)
def test_time_is_refused_where_it_is_measured_otherwise_than_it_is_spent(workspace, device, finetune):
    workspace.set(finetune, budget="9 h")
    file = workspace.root / "params.yaml"
    given = json.loads(file.read_text())
    given["device"] |= device
    file.write_text(json.dumps(given))
    with pytest.raises(UserError, match="time is measured with whole weights in one process"):
        main(workspace.argv())
