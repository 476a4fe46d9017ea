"""Scores by group against fractions counted by hand, and resamples within groups against a plain loop."""

import numpy as np
import pytest

from salf.engine.batches import Example
from salf.records import PreparedLabel, PreparedRecord
from stages.common.params import load_params
from stages.evaluate.compare import Sampling
from stages.evaluate.groups import group_panels
from stages.evaluate.scores import Predictions
from tests.conftest import PROJECT

ASKED = load_params(PROJECT / "params.yaml").evaluate.model_copy(update={"bootstrap": 400})
LABELS = [PreparedLabel(label=name, word=name, token_ids=[at]) for at, name in enumerate(["no", "yes"])]
META = PreparedRecord.model_construct(task="classification", labels=LABELS, subgroup_column="who")
GROUPED = {"full": ["full-seed1"], "half": ["half-seed1", "half-seed2"]}

# Of each group: examples by (label, answer).
BY_HAND = {
    "a": {("yes", "yes"): 12, ("yes", "no"): 4, ("no", "yes"): 6, ("no", "no"): 18},  # 40
    "b": {("yes", "yes"): 5, ("yes", "no"): 15, ("no", "yes"): 1, ("no", "no"): 9},  # 30
}


def examples(groups, labels):
    rows = zip(groups, labels, strict=True)
    return [Example(str(n), label, "", "", (1,), (2,), subgroup=group) for n, (group, label) in enumerate(rows)]


def answers(said, labels, loss=1.0):
    correct = np.array([one == label for one, label in zip(said, labels, strict=True)], float)
    return Predictions(list(said), correct, np.full(len(said), loss), np.ones(len(said)), [None] * len(said))


def by_hand():
    rows = [(group, *pair) for group, pairs in BY_HAND.items() for pair, n in pairs.items() for _ in range(n)]
    groups, labels, said = (list(one) for one in zip(*rows, strict=True))
    return groups, labels, said


def sizes(found):
    return {group: panel.examples for group, panel in found.groups.items()}


def compare(groups, labels, said, other=None):
    right = answers(labels, labels)
    models = {"untrained": answers(["no"] * len(labels), labels), "full-seed1": right, "half-seed1": said}
    models["half-seed2"] = other or said
    return group_panels(examples(groups, labels), models, META, Sampling(ASKED, GROUPED))


def test_rates_and_gaps_are_fractions_of_a_confusion_table():
    groups, labels, said = by_hand()
    found = compare(groups, labels, answers(said, labels))
    assert (found.column, found.positive, sizes(found), found.pooled) == ("who", "yes", {"a": 40, "b": 30}, [])
    rates = {
        group: {name: one.value for name, one in found.groups[group].models["half"].scores.items()} for group in "ab"
    }
    assert rates["a"] == pytest.approx(
        {
            "accuracy": 30 / 40,
            "loss": 1.0,
            "positive_rate": 18 / 40,
            "true_positive_rate": 12 / 16,
            "false_positive_rate": 6 / 24,
        }
    )
    assert rates["b"]["true_positive_rate"] == 5 / 20
    gaps = {name: one.value for name, one in found.gaps.models["half"].scores.items()}
    assert gaps == pytest.approx({name: abs(rates["a"][name] - rates["b"][name]) for name in gaps})
    assert found.gaps.models["full"].scores["accuracy"].high == 0
    assert found.gaps.models["half"].minus_full["accuracy"].value == pytest.approx(30 / 40 - 14 / 30)
    assert found.gaps.models["half"].minus_base["accuracy"].value == pytest.approx(
        30 / 40 - 14 / 30 - (24 / 40 - 10 / 30)
    )
    # The untrained model never says yes, full always where it is right: 12 of these 16 are said.
    assert found.groups["a"].models["half"].share_of_full["true_positive_rate"].value == 12 / 16
    assert "loss" not in found.groups["a"].models["half"].share_of_full  # all models have the same


def test_resamples_stay_within_a_group_and_are_the_same_for_all_models():
    groups, labels, said = by_hand()
    order = np.random.default_rng(0).permutation(len(groups))
    groups, labels, said = ([each[n] for n in order] for each in (groups, labels, said))
    found = compare(groups, labels, answers(said, labels))
    correct = np.array([one == label for one, label in zip(said, labels, strict=True)], float)
    yes, true = (np.array([one == "yes" for one in each], float) for each in (said, labels))
    drawn = {}
    for group in "ab":
        members = np.array([n for n, one in enumerate(groups) if one == group])
        generator = np.random.default_rng((ASKED.seed, int(members[0])))
        drawn[group] = members[generator.integers(len(members), size=(ASKED.bootstrap, len(members)))]
        means = [correct[picks].mean() for picks in drawn[group]]
        scored = found.groups[group].models["half"].scores
        assert (scored["accuracy"].low, scored["accuracy"].high) == pytest.approx(
            tuple(np.quantile(means, [0.025, 0.975]))
        )
        rates = [yes[picks][true[picks] > 0].mean() for picks in drawn[group]]
        assert scored["true_positive_rate"].low == pytest.approx(np.quantile(rates, 0.025))
    pairs = zip(drawn["a"], drawn["b"], strict=True)
    gaps = [correct[one].mean() - correct[other].mean() for one, other in pairs]
    assert found.gaps.models["half"].scores["accuracy"].low == pytest.approx(np.quantile(gaps, 0.025))
    # Full is always right, so the difference in the gaps is half's gap.
    assert found.gaps.models["half"].minus_full["accuracy"].high == pytest.approx(np.quantile(gaps, 0.975))


def test_groups_that_are_alike_may_have_no_gap_and_names_mean_nothing():
    _, labels, said = by_hand()
    labels, said = labels * 2, said * 2
    groups = ["x"] * 70 + ["y"] * 70
    found = compare(groups, labels, answers(said, labels)).gaps.models["half"].scores
    for one in found.values():
        assert one.value == 0
        assert one.low <= 0 <= one.high
    assert found["accuracy"].low < 0 < found["accuracy"].high
    groups, labels, said = by_hand()
    other = {"a": "zebra", "b": "ant"}
    renamed = compare([other[group] for group in groups], labels, answers(said, labels))
    plain = compare(groups, labels, answers(said, labels))
    assert renamed.gaps == plain.gaps
    assert {group: renamed.groups[other[group]] for group in other} == plain.groups


def test_small_groups_are_pooled_and_seeds_averaged():
    groups, labels, said = by_hand()
    groups += ["c"] * 15 + [None] * 6
    labels, said = labels + ["yes"] * 21, said + ["yes"] * 21
    found = compare(groups, labels, answers(said, labels), answers(labels, labels))
    assert (sizes(found), found.pooled) == ({"(pooled)": 21, "a": 40, "b": 30}, ["(none)", "c"])
    assert found.groups["b"].models["half"].scores["accuracy"].value == pytest.approx((14 / 30 + 1) / 2)
    pooled = found.groups["(pooled)"].models["half"].scores
    assert "false_positive_rate" not in pooled  # all examples have the label
    assert pooled["true_positive_rate"].value == 1


def test_of_more_than_two_labels_there_are_no_rates():
    labels = ["a", "b", "c"] * 10
    known = [PreparedLabel(label=name, word=name, token_ids=[1]) for name in "abc"]
    meta = META.model_copy(update={"labels": known})
    models = {"untrained": answers(labels, labels)}
    found = group_panels(examples(["x"] * 30, labels), models, meta, Sampling(ASKED, {}))
    assert found.positive is None
    assert set(found.gaps.models["untrained"].scores) == {"accuracy", "loss"}
