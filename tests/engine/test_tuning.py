"""Grids of learning rates and races of methods: which arm wins, what it costs, and what becomes of a diverging one."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from salf import cost
from salf.engine import tuning
from salf.engine.batches import Split
from salf.engine.training.checkpoint import Training
from salf.engine.training.scope import Scope
from salf.engine.training.step import Stepper
from salf.engine.training.workbench import Workbench
from salf.engine.tuning import Arm, Tuning, best_of, race_settings
from salf.errors import UserError
from salf.files import write_json
from salf.methods import Method, method_of
from salf.plan import FreezePlan
from salf.records import KeptWeights
from salf.settings import Lozo
from tests.engine.training.tiny_training import RUNTIME, SHARED, assert_equal_weights, made_examples, params
from tests.own_plan import write_plan_and_base

DIVERGING = 1e38


@pytest.fixture
def bench(tmp_path, hub_folder):
    (tmp_path / "data").mkdir()
    write_plan_and_base(tmp_path, hub_folder)

    def make(rates):
        split = Split(made_examples(), SHARED)
        return Tuning(
            bench=Workbench(
                base=tmp_path / "data/base",
                runtime=RUNTIME,
                settings=params(epochs=1, warmup_share=0.0, schedule="constant"),
            ),
            plan=FreezePlan.load(tmp_path / "data/plan/freeze_plan.json"),
            arms=[Arm(Method("full"), rate) for rate in sorted(rates)],
            keep=None,
            name="full",
            seed=1,
            first_n=None,
            training=split,
            validation=split,
            test=split.subset(range(5)),
            rule=None,
            unfinished=tmp_path / "unfinished",
        )

    return make


@pytest.mark.parametrize("rates", [[0.01, 0.0001, 0.001], [0.001, 0.01, 1.0]], ids=["an end", "inside"])
def test_without_labels_the_lowest_validation_loss_wins_and_an_end_of_the_grid_is_told(bench, rates, capsys):
    found = best_of(bench(rates))
    losses = {one.rate: one.validation_loss for one in found.grid}
    assert list(losses) == sorted(rates)
    assert found.arm.rate == min(losses, key=losses.get) == 0.01
    assert ("edge of its grid" in capsys.readouterr().out) == (max(rates) == 0.01)
    assert found.training.curve[-1].validation_loss == min(losses.values())


@pytest.mark.parametrize("name", ["lozo", "mezo"])
def test_a_method_that_counts_steps_takes_them_rounded_up_to_epochs_and_learns(bench, name):
    made = bench([2e-4])
    made = replace(made, arms=[Arm(method_of(f"full+{name}"), 2e-4)])
    with pytest.raises(UserError, match=f"full.{name}: it counts steps, not epochs"):
        best_of(made)
    changes = {"lozo": Lozo(steps=58), "schedule": "cosine", "warmup_share": 0.5}  # its rate is constant
    settings = made.bench.settings.model_copy(update=changes)
    found = best_of(replace(made, bench=replace(made.bench, settings=settings)))
    assert (found.setup.epochs, found.training.steps) == (20, 60)  # three steps an epoch
    first, *_, last = found.training.curve
    assert last.validation_loss < first.validation_loss


def test_every_rate_is_scored_on_the_test_split_which_decides_nothing(bench):
    """Each entry is that of a run at this rate alone, scored here by transformers itself."""
    made = bench([0.0001, 0.01, 0.001])
    found = best_of(made)
    for entry in found.grid:
        alone = bench([entry.rate])
        one = best_of(replace(alone, unfinished=alone.unfinished / "alone"))
        assert one.grid[0].model_fields_set == {"rate", "validation_loss", "validation_accuracy"}
        losses = []
        for example in made.test.examples:
            ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
            labels = ids.clone()
            labels[0, : len(example.prompt_ids)] = -100
            losses.append(one.trainable.model.network(ids, labels=labels).loss.item())
        assert entry.test_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert entry.validation_loss == one.grid[0].validation_loss
        assert entry.test_accuracy is None
        assert one.training.flops == found.training.flops
    worse = replace(made, test=made.test.subset([4, 3, 2, 1, 0]), unfinished=made.unfinished / "other")
    assert best_of(worse).arm.rate == found.arm.rate


@pytest.mark.parametrize("rates", [[0.001, 0.01, 1.0], [0.001, 0.0010000001]], ids=["inside", "nearly equal"])
def test_the_winner_is_read_back_with_the_weights_that_it_was_trained_to(bench, rates):
    made = bench(rates)
    found = best_of(made)
    alone = bench([found.arm.rate])
    one = best_of(replace(alone, unfinished=made.unfinished / "alone"))
    assert_equal_weights(found.trainable, one.trainable)
    assert found.training.curve == one.training.curve


def test_a_grid_that_was_stopped_trains_no_rate_twice(bench, monkeypatch):
    made = bench([0.001, 0.01, 0.1])
    whole = best_of(replace(made, unfinished=made.unfinished / "whole"))
    steps, take = [], Stepper.take

    def stopping(self, parts, rate, number):
        if len(steps) == 6:
            raise KeyboardInterrupt
        steps.append((rate, number))
        return take(self, parts, rate, number)

    monkeypatch.setattr(Stepper, "take", stopping)
    with pytest.raises(KeyboardInterrupt):
        best_of(made)
    monkeypatch.setattr(
        Stepper, "take", lambda self, parts, rate, n: steps.append((rate, n)) or take(self, parts, rate, n)
    )
    again = best_of(made)
    assert steps == [(rate, number) for rate in (0.001, 0.01, 0.1) for number in range(3)]
    assert again.grid == whole.grid
    assert_equal_weights(again.trainable, whole.trainable)


def test_a_grid_holds_one_network_at_a_time(bench, monkeypatch):
    opened, alive = [], []

    def opening(*args):
        gc.collect()
        alive.append(sum(network() is not None for network in opened))
        model = open_one(*args)
        opened.append(weakref.ref(model.network))
        return model

    open_one = Workbench.open
    monkeypatch.setattr(Workbench, "open", opening)
    best_of(bench([0.001, 0.01, 1.0]))  # the middle one wins: it is opened again
    assert alive == [0, 0, 0, 0]


def test_a_clear_difference_in_accuracy_decides_a_grid(bench, monkeypatch):
    """The loss falls from rate to rate; the third one's accuracy is clearly below the first one's."""
    stood = {0.001: (0.5, 0.80), 0.01: (0.45, 0.75), 0.1: (0.40, 0.5)}

    def trained(job):
        loss, accuracy = stood[job.rate]
        kept = [KeptWeights(keep="last", step=1, validation_loss=loss, validation_accuracy=accuracy)]
        return Training(kept=kept, validation_losses=[loss] * 12)

    monkeypatch.setattr("salf.engine.tuning.train", trained)
    found = best_of(bench(list(stood)))
    assert found.arm.rate == 0.01  # of twelve examples, so that one standard error is 12 points
    assert [one.validation_accuracy for one in found.grid] == [0.80, 0.75, 0.5]


def test_a_rate_at_which_training_diverges_loses(bench, capsys):
    found = best_of(bench([0.001, DIVERGING]))
    assert found.arm.rate == 0.001
    assert found.grid[1].rate == DIVERGING
    assert found.grid[1].model_fields_set == found.grid[0].model_fields_set
    assert set(found.grid[1].model_dump(exclude={"rate"}).values()) == {None}
    assert "with learning rate 1e+38; lower finetune.learning_rate (in a race: race.arms)" in capsys.readouterr().out


def test_where_all_rates_diverge_nothing_is_trained(bench):
    with pytest.raises(UserError, match=r"became nan at step .* with learning rate 2e\+38; lower"):
        best_of(bench([DIVERGING, 2 * DIVERGING]))


@pytest.fixture
def race(bench):
    """A race of five arms in three epochs; the examples' data end one token before their prompts do."""

    def make(
        arms=(("full+answer", 0.01), ("full+answer", 0.001), ("freeze-2", 0.01), ("full", 1e-05)), keep=2, **changes
    ):
        made, settings = bench([0.01]), race_settings(params(epochs=3, warmup_share=0.0, cache="memory"))
        units = ["embedding", *(f"layer-{number:02}" for number in range(1, 5))]
        write_json(made.bench.base / "base.json", {"shards": {f"{unit}.safetensors": unit for unit in units}})
        split = Split([replace(e, field_end=len(e.prompt_ids) - 1) for e in made.training.examples], SHARED)
        facts = {
            "bench": replace(made.bench, settings=settings.model_copy(update=changes)),
            "arms": [Arm(method_of(method), rate) for method, rate in arms],
            "training": split,
            "validation": split,
            "test": None,
            "name": "race",
            "keep": keep,
        }
        return replace(made, **facts)

    return make


def test_a_race_drops_arms_and_trains_the_winner_to_the_end(race):
    found = best_of(race())
    record = found.race
    assert [look.epoch for look in record.looks] == [1, 2, 3][-len(record.looks) :]
    first = record.looks[0]
    assert len([one for one in first.standings if one.fate in ("leads", "stays")]) <= 2
    assert record.arms[record.winner].steps == 9 == found.training.steps
    for number, arm in enumerate(record.arms):
        looked = [look.epoch for look in record.looks if number in [one.arm for one in look.standings]]
        assert [round(point.epoch) for point in arm.curve] == looked
        assert arm.steps == 3 * looked[-1]


def test_a_race_of_one_arm_is_plain_training_with_its_schedule(race, bench):
    made = race([("full", 0.01)])
    found = best_of(made)
    plain = best_of(replace(bench([0.01]), bench=made.bench, unfinished=made.unfinished / "plain"))
    assert_equal_weights(found.trainable, plain.trainable)
    assert found.training.curve == plain.training.curve


@pytest.mark.parametrize(("stop", "cache"), [*((n, "memory") for n in range(0, 18, 3)), (6, "auto"), (9, "disk")])
def test_a_race_that_was_stopped_goes_on_to_the_same_result(race, monkeypatch, tmp_path, stop, cache):
    made, other = (
        race(checkpoint_minutes=0, cache=cache, cache_folder=str(tmp_path / name)) for name in ("cache", "other")
    )
    whole = best_of(replace(other, unfinished=made.unfinished / "whole"))
    taken, take = [], Stepper.take

    def stopping(self, parts, rate, number):
        if len(taken) == stop:
            raise KeyboardInterrupt
        taken.append(number)
        return take(self, parts, rate, number)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", stopping)
        with pytest.raises(KeyboardInterrupt):
            best_of(made)
    again = best_of(made)
    assert again.race == whole.race
    assert_equal_weights(again.trainable, whole.trainable)


def test_a_race_costs_what_pytorch_counts(race, monkeypatch, fused_attention):
    """Openings check a model on a few tokens, and learn a cache's sizes from one: neither is work of the race."""
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)  # PyTorch does not count its fused attention on a CPU
    spent = []

    def counted(function):
        def counting(*args, **kwargs):
            with FlopCounterMode(display=False) as counter:
                found = function(*args, **kwargs)
            spent.append(counter.get_total_flops())
            return found

        return counting

    monkeypatch.setattr("salf.engine.tuning.train", counted(tuning.train))
    for name in ("open_states", "open_prompts", "open_both"):
        monkeypatch.setattr(Workbench, name, counted(getattr(Workbench, name)))
    made = race()
    record = best_of(made).race
    maps = made.bench.shape.layer.maps
    token = 2 * sum(part.products for part in maps) * 3 + 2 * sum(
        part.products for part in maps if part.role != "other"
    )
    assert record.flops == sum(spent) - 2 * token  # both splits' prompts
    side = made.training.after_prompts(made.bench.settings.answer_side)
    apart = made.bench.costs(Scope.above(0, 4)).frozen(side) + made.bench.costs(Scope.above(2, 4)).frozen(made.training)
    read_once = SHARED + sum(rows - SHARED for rows in side.base_rows)
    assert record.flops_before == 2 * (apart - cost.forward_flops(made.bench.shape, 2, read_once, 0))
    assert len(record.looks) > 1
    assert {arm.method for arm in record.arms} == {"full", "full+answer", "freeze-2"}
