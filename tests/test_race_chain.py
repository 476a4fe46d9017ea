"""A race through the whole chain: what its winner's folder holds, and that every place counts all arms."""

import shutil

import pytest

from salf.engine.training.step import Stepper
from salf.plan import FreezePlan
from salf.records import FineTuneClock, FineTuneRecord
from tests.conftest import write_tiny_task
from tests.test_chain import Chain, commands

ARMS = [
    {"method": "full+answer+lora", "learning_rate": [0.01, 0.03]},
    {"method": "full+answer", "learning_rate": 0.01},
    {"method": "half", "learning_rate": [0.01]},
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("race")
    write_tiny_task(
        root,
        hub_folder,
        data__limits={"train": 60, "validation": 24, "test": 30},
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=["full", "race"],
        finetune__epochs=3,
        finetune__checkpoint_minutes=0,
        finetune__learning_rate={"full": 0.003, "salf": 0.003},
        race={"arms": ARMS, "keep": 2},
        evaluate__bootstrap=20,
    )
    return Chain(root).run(["full", "race"])


@pytest.fixture(scope="module")
def record(chain) -> FineTuneRecord:
    return FineTuneRecord.load(chain.root / "data/models/race-seed1")


def test_the_folder_holds_the_winners_own_plan(chain, record):
    winner = record.race.arms[record.race.winner]
    plan, general = (FreezePlan.load(chain.root / path) for path in ("data/models/race-seed1", "data/plan"))
    assert (plan.boundary, plan.tuned.method, plan.tuned.learning_rate) == (
        winner.boundary,
        winner.method,
        winner.learning_rate,
    )
    assert plan.trained_layers == record.trained_layers == list(range(winner.boundary + 1, 5))
    assert (plan.tuned.positions, plan.tuned.form) == {
        "full+answer+lora": ("answer", "lora"), "full+answer": ("answer", "weights"), "half": ("all", "weights")
    }[winner.method]  # fmt: skip
    assert plan.frontier == general.frontier
    assert general.tuned is None


def test_all_that_a_race_cost_is_counted_everywhere(chain, record):
    race, metrics = record.race, chain.json("reports/metrics.json")
    spent = sum(arm.flops + arm.flops_validation for arm in race.arms)
    assert record.flops == race.flops == race.flops_before + spent
    assert race.flops_winner == record.curve[-1].flops < record.flops
    run, full = metrics["runs"]["race-seed1"], metrics["runs"]["full-seed1"]
    assert (run["method"], run["flops"], run["flops_winner"]) == ("race", race.flops, race.flops_winner)
    assert run["flops_share"] == race.flops / full["flops"]
    assert metrics["methods"]["race"]["flops_winner"] == race.flops_winner
    assert "flops_winner" not in full
    clock = FineTuneClock.load(chain.root / "reports/runs/race-seed1.json")
    assert clock.seconds_training > 3 * clock.seconds_per_step * record.steps / record.epochs


def test_a_killed_race_makes_the_same_folder(chain, monkeypatch):
    folder, taken, take = chain.root / "data/models/race-seed1", [], Stepper.take
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    (_, *argv) = commands(["race"])[-2]

    def stopping(self, parts, rate, number):
        taken.append(number)
        if len(taken) == 18:  # in the second epoch of what survived the first one
            raise KeyboardInterrupt
        return take(self, parts, rate, number)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", stopping)
        with pytest.raises(KeyboardInterrupt):
            chain.stage("finetune", *argv)
    assert not folder.exists()
    chain.stage("finetune", *argv)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
