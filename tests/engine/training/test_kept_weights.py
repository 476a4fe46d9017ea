"""``finetune.keep`` and ``finetune.patience``: averages, the best look and an early end, against plain re-runs."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from salf import cost
from salf.engine.batches import Candidate, Split
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.rules import CandidateRule, LabelTree
from salf.engine.training import loop
from salf.engine.training.checkpoint import Checkpoint
from salf.engine.training.loop import Validated, train
from salf.engine.training.scope import LayerDraws
from salf.engine.training.step import Stepper
from salf.rate_choice import Tried, choose
from tests.engine.training.test_answer_side_training import job as answer_job
from tests.engine.training.tiny_training import (
    RUNTIME,
    SHARED,
    KilledError,
    assert_equal_weights,
    job_of,
    killed_at,
    made_examples,
    params,
    run,
    trainable,
    weights,
)

EXAMPLES = made_examples()  # three steps an epoch
OTHERS = [replace(example, answer_ids=(9, 8)) for example in EXAMPLES]  # the loss at their answers falls, then rises
DRAWS = LayerDraws(depth=4, layers=1, steps=2, seed=4)


def weights_job(settings, **changes):
    return job_of(trainable(2), EXAMPLES, settings, **{"validation": Split(OTHERS, SHARED), **changes})


def drawn_job(settings, **changes):
    return job_of(trainable(0, draws=DRAWS), EXAMPLES, settings, validation=Split(OTHERS, SHARED), **changes)


def answers_job(settings, **changes):
    return answer_job("freeze-2+answer", settings, **changes)


JOBS = [weights_job, drawn_job, answers_job]


def collected(make, settings, monkeypatch):
    """The trained weights after every step of a plain run, [steps] of {name: tensor}."""
    job, states, take = make(settings), [], Stepper.take

    def collecting(self, *arguments):
        loss = take(self, *arguments)
        states.append(weights(job.trainable))
        return loss

    monkeypatch.setattr(Stepper, "take", collecting)
    train(job)
    monkeypatch.setattr(Stepper, "take", take)
    return states


def losses_by_hand(made, state):
    """Mean over the examples of transformers' own loss at their answers, with the weights of ``state``."""
    network = made.model.network
    network.load_state_dict(state, strict=False)
    losses = []
    for example in OTHERS:
        ids = torch.tensor([example.prompt_ids + example.answer_ids])
        labels = ids.clone()
        labels[0, : len(example.prompt_ids)] = -100
        losses.append(network(ids, labels=labels).loss.item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("make", JOBS)
def test_averages_are_those_of_the_weights_collected_over_the_last_third(make, monkeypatch):
    """Nine steps: the last three count. In float64: the plain mean, and pandas' exponential one."""
    plain = collected(make, params(epochs=3), monkeypatch)
    for keep in ("mean", "ema"):
        job = make(params(epochs=3, keep=[keep]))
        done = train(job)
        assert [done.kept[0].keep, done.kept[0].step, len(done.kept)] == [keep, 9, 1]
        for name, weight in weights(job.trainable).items():
            rows = pd.DataFrame(torch.stack([state[name].double().flatten() for state in plain[6:]]).numpy())
            expected = rows.mean() if keep == "mean" else rows.ewm(span=3, adjust=True).mean().iloc[-1]
            torch.testing.assert_close(
                weight.double().flatten(), torch.tensor(expected.to_numpy()), rtol=1e-6, atol=1e-7
            )


def test_one_training_gives_last_and_mean_and_the_first_named_is_the_models():
    """Validation and test losses by transformers itself; the run and its curve are those of a plain one."""
    plain = weights_job(params())
    curve = train(plain).curve
    mean = weights_job(params(keep=["mean"]))
    assert train(mean).curve == curve
    for keep, expected in ((["last", "mean"], plain), (["mean", "last"], mean)):
        job = weights_job(params(keep=keep), test=plain.validation.subset([3, 4]))
        done = train(job)
        assert done.curve == curve
        assert [one.keep for one in done.kept] == keep
        assert_equal_weights(job.trainable, expected.trainable)
        found = {one.keep: one for one in done.kept}
        for name, of in (("last", plain), ("mean", mean)):
            loss = losses_by_hand(trainable(2), weights(of.trainable))
            assert found[name].validation_loss == pytest.approx(loss, rel=1e-5)
            assert found[name].test_loss != found[name].validation_loss


def test_best_is_the_look_with_the_lowest_loss_by_transformers_itself(monkeypatch):
    """At this rate the loss of a plain run goes up and down; without labels the lowest one wins."""
    settings = params(epochs=4, evaluations_per_epoch=3, schedule="constant")
    states = collected(weights_job, settings, monkeypatch)
    losses = [losses_by_hand(trainable(2), state) for state in states]
    step = min(range(len(losses)), key=losses.__getitem__)
    assert step < len(losses) - 1

    job = weights_job(settings.model_copy(update={"keep": ["best"]}))
    done = train(job)
    assert done.kept[0].step == step + 1
    assert done.kept[0].validation_loss == pytest.approx(losses[step], rel=1e-5)
    for name, weight in weights(job.trainable).items():
        assert torch.equal(weight, states[step][name])


# Looks at the validation split, the first before training: loss and accuracy. One standard error of 12 examples is
# some 12 points of accuracy, so that only 0.3 is clearly lower than 0.9.
LOOKS = [(1.0, 0.9), (5.0, 0.3), (6.0, 0.9), (5.5, 0.85), (4.0, 0.3), (5.6, 0.9), (5.7, 0.95)]


@pytest.mark.parametrize(("patience", "steps"), [(None, 6), (4, 6), (3, 6), (2, 5), (1, 4)])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_looks_are_compared_by_the_rule_of_the_learning_rates(monkeypatch, patience, steps, keep):
    looks = iter(LOOKS)
    monkeypatch.setattr(loop, "validate", lambda *_: Validated([], [], *next(looks)))
    done = run(trainable(3), EXAMPLES, params(evaluations_per_epoch=3, keep=[keep], patience=patience))
    tried = [Tried(0.01, *look) for look in LOOKS]
    best = 1
    for number in range(2, steps + 1):
        best = number if choose([tried[best], tried[number]], len(EXAMPLES)) == tried[number] else best
    assert best == 3
    assert (done.steps, done.best.step) == (steps, best)
    assert done.kept[0].step == (best if keep == "best" else steps)
    assert done.kept[0].validation_loss == LOOKS[done.kept[0].step][0]


@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.usefixtures("fused_attention")
def test_steps_and_looks_of_a_run_that_ends_early_cost_what_pytorch_counts(monkeypatch, boundary):
    """PyTorch does not count its fused attention on a CPU: neither do we here."""
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)
    made = trainable(boundary)
    splits = [Split(examples, SHARED) for examples in (EXAMPLES, OTHERS)]
    if boundary:
        starts = [cache_boundary(made.model, RUNTIME, split.examples, SHARED, boundary, 64) for split in splits]
        splits = [replace(split, start=start) for split, start in zip(splits, starts, strict=True)]
    training, validation = splits
    settings = params(epochs=9, evaluations_per_epoch=3, schedule="constant", patience=2, keep=["best"])
    job = job_of(made, EXAMPLES, settings, training=training, validation=validation)
    with FlopCounterMode(display=False) as counter:
        done = train(job)
    assert done.kept[0].step == done.steps - 2 < 25
    before = sum(job.costs.frozen(split) for split in splits)
    assert counter.get_total_flops() == done.flops + done.flops_validation - before


LABELS = LabelTree.of({"a": (9, 8, 3), "b": (9, 8, 4), "c": (9, 7)})
CANDIDATES = [Candidate("a", (9, 8)), Candidate("b", (9, 3, 5)), Candidate("c", (4,))]


@pytest.mark.parametrize("rule", [LABELS, CandidateRule("sum")], ids=["labels", "candidates"])
@pytest.mark.parametrize("method", ["full", "freeze-2", "freeze-2+answer", "freeze-2+answer+lora"])
@pytest.mark.usefixtures("fused_attention")
def test_looks_count_all_that_is_read_to_compare_labels_and_candidates(monkeypatch, method, rule):
    """PyTorch does not count its fused attention on a CPU: neither do we here."""
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)
    counted, settings = [], params(evaluations_per_epoch=1, keep=["best"])
    if "answer" in method:
        job = answer_job(method, settings, rule=rule)
    else:
        made = trainable(2 if method == "freeze-2" else 0)
        start = cache_boundary(made.model, RUNTIME, EXAMPLES, SHARED, 2, 64) if method == "freeze-2" else None
        job = job_of(made, EXAMPLES, settings, start, rule=rule)
    split = job.validation
    validation = replace(split, examples=[replace(e, label="a", candidates=CANDIDATES) for e in split.examples])
    read = loop.validate

    def counting(*arguments):
        with FlopCounterMode(display=False) as counter:
            found = read(*arguments)
        counted.append(counter.get_total_flops())
        return found

    monkeypatch.setattr(loop, "validate", counting)
    done = train(replace(job, validation=validation))
    assert len(counted) == 3
    assert sum(counted) == done.flops_validation - job.costs.frozen(validation)


@pytest.mark.parametrize("make", JOBS)
@pytest.mark.parametrize(
    "changes",
    [
        {"keep": ["mean", "ema", "last"], "epochs": 3},
        {"keep": ["best", "mean"], "evaluations_per_epoch": 3, "epochs": 3},
        {"keep": ["best"], "evaluations_per_epoch": 3, "epochs": 9, "schedule": "constant", "patience": 2},
    ],
)
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, monkeypatch, make, changes):
    """Killed amid the averages, after a best look, and between the last step and the end."""
    settings = params(checkpoint_minutes=0, **changes)
    whole = make(settings, checkpoint=tmp_path / "whole.safetensors")
    expected = train(whole)
    end = loop._Run._end

    def ending(_self):
        raise KilledError

    for fault in (expected.steps - 1, None):
        stopped = make(settings, checkpoint=tmp_path / "stopped.safetensors")
        if fault is not None:
            killed_at(monkeypatch, fault)
        monkeypatch.setattr(loop._Run, "_end", ending)
        with pytest.raises(KilledError):
            train(stopped)
        monkeypatch.undo()
    assert loop._Run._end is end
    stopped = make(settings, checkpoint=tmp_path / "stopped.safetensors")
    done = train(stopped)
    assert done.model_dump(exclude={"step_seconds"}) == expected.model_dump(exclude={"step_seconds"})
    assert_equal_weights(stopped.trainable, whole.trainable)

    parameters = stopped.trainable.parameters
    Checkpoint(tmp_path / "ended.safetensors", parameters, torch.optim.SGD(parameters)).save(done)
    again = make(settings, checkpoint=tmp_path / "ended.safetensors")
    assert train(again).kept == expected.kept
    assert_equal_weights(again.trainable, whole.trainable)


def test_averages_of_low_rank_factors_are_refused():
    method = "freeze-2+answer+lora"
    assert params(keep=["last", "ema"]).unfit(method, {}) == (
        f"{method}: finetune.keep = ema cannot be combined with lora: the mean of low-rank factors is not the factor "
        "of the mean; leave out +lora"
    )
    assert params(keep=["best"], patience=1).unfit(method, {}) is None
    train(answer_job(method, params(keep=["best"], patience=1)))
