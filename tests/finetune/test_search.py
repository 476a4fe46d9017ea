"""A grid of learning rates: which one wins, and what becomes of one at which training diverges."""

import pytest

from stages.common.answers import Reader
from stages.common.command import UserError
from stages.common.cost import ModelShape
from stages.common.freeze_plan import FreezePlan
from stages.common.training.checkpoint import Training
from stages.finetune.search import Bench, Candidate, best_of_grid
from tests.common.models.tiny import tiny_network
from tests.common.training.tiny_training import RUNTIME, SHARED, made_examples, params
from tests.own_plan import write_plan_and_base

DIVERGING = 1e38


@pytest.fixture
def bench(tmp_path, hub_folder):
    (tmp_path / "data").mkdir()
    write_plan_and_base(tmp_path, hub_folder)

    def make(rates):
        return Bench(
            base=tmp_path / "data/base",
            plan=FreezePlan.load(tmp_path / "data/plan/freeze_plan.json"),
            method="full",
            runtime=RUNTIME,
            params=params(epochs=1, warmup_share=0.0, schedule="constant", learning_rate={"full": rates}),
            first_n=None,
            shape=ModelShape.from_config(tiny_network(tie_word_embeddings=True).config.to_dict()),
            training=made_examples(),
            validation=made_examples(),
            shared=SHARED,
            unfinished=tmp_path / "unfinished",
            make_reader=lambda model: Reader(model, RUNTIME, None, batch_tokens=64),
        )

    return make


@pytest.mark.parametrize("rates", [[0.01, 0.0001, 0.001], [0.001, 0.01, 1.0]], ids=["an end", "inside"])
def test_without_labels_the_lowest_validation_loss_wins_and_an_end_of_the_grid_is_told(bench, rates, capsys):
    found = best_of_grid(bench(rates), seed=1)
    losses = {one["rate"]: one["validation_loss"] for one in found.grid}
    assert list(losses) == sorted(rates)
    assert found.best.rate == min(losses, key=losses.get) == 0.01
    assert ("an end of the grid" in capsys.readouterr().out) == (max(rates) == 0.01)
    assert found.best.training.curve[-1]["validation_loss"] == min(losses.values())


def test_a_clear_difference_in_accuracy_decides_a_grid(bench, monkeypatch):
    """The loss falls from rate to rate; the third one's accuracy is clearly below the first one's."""
    stood = {0.001: (0.5, 0.80), 0.01: (0.45, 0.75), 0.1: (0.40, 0.5)}

    def trained(_bench, _scope, _model, _states, _costs, rate, *_):
        loss, accuracy = stood[rate]
        curve = [{"validation_loss": loss, "validation_accuracy": accuracy}]
        return Candidate(rate, None, Training(curve=curve))

    monkeypatch.setattr("stages.finetune.search._train_one", trained)
    found = best_of_grid(bench(list(stood)), seed=1)
    assert found.best.rate == 0.01  # of twelve examples, so that one standard error is 12 points
    assert [one["validation_accuracy"] for one in found.grid] == [0.80, 0.75, 0.5]


def test_a_rate_at_which_training_diverges_loses(bench, capsys):
    found = best_of_grid(bench([0.001, DIVERGING]), seed=1)
    assert found.best.rate == 0.001
    assert found.grid[1] == {"rate": DIVERGING, "validation_loss": None, "validation_accuracy": None}
    assert "with learning rate 1e+38; lower finetune.learning_rate" in capsys.readouterr().out


def test_where_all_rates_diverge_nothing_is_trained(bench):
    with pytest.raises(UserError, match=r"became nan at step .* with learning rate 2e\+38; lower"):
        best_of_grid(bench([DIVERGING, 2 * DIVERGING]), seed=1)
