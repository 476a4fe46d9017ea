import re
from collections import Counter
from dataclasses import replace

import pytest

from salf.errors import UserError
from stages.common.params import Limits
from stages.prepare.rows import Example
from stages.prepare.splits import carve, check_usable, draw, separate
from tests.prepare.making import make_data

OPEN = Limits(train=None, validation=None, test=None)


def example(name: str, label: str | None = "x", group: str | None = None, text: str | None = None) -> Example:
    text = text or f"text {name} of its own"
    return Example(name, group, label, text, f"{text}\nLabel:", label or "answer")


def many(label: str, n: int, group_size: int = 1) -> list[Example]:
    return [example(f"{label}{at}", label, f"{label}-file{at // group_size}") for at in range(n)]


def test_carved_splits_are_stratified_and_hold_whole_groups():
    train = many("a", 600, group_size=4) + many("b", 200, group_size=3) + many("c", 40)
    parts = carve({"train": train}, Limits(train=60, validation=15, test=25), seed=3)
    assert sorted(e.example_id for part in parts.values() for e in part) == sorted(e.example_id for e in train)
    for label, n in (("a", 600), ("b", 200), ("c", 40)):
        counts = {split: sum(e.label == label for e in part) for split, part in parts.items()}
        for split, share in (("train", 0.6), ("validation", 0.15), ("test", 0.25)):
            assert counts[split] == pytest.approx(share * n, abs=4)
    groups = [{e.group for e in part} for part in parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_a_group_of_several_labels_stays_whole():
    train = [example(f"{g}{label}", label, f"g{g}") for g in range(40) for label in "abc"]
    parts = carve({"train": train}, OPEN, seed=1)
    assert {split: len(part) for split, part in parts.items()} == {"train": 84, "validation": 12, "test": 24}
    assert all(Counter(e.group for e in part).most_common()[-1][1] == 3 for part in parts.values())


def test_only_the_absent_split_is_carved():
    test = many("a", 5)
    parts = carve({"train": many("b", 100), "test": test}, Limits(train=80, validation=20, test=7), seed=1)
    assert parts["test"] == test
    assert (len(parts["train"]), len(parts["validation"])) == (80, 20)


def test_carving_depends_on_the_seed_and_not_on_the_order_of_the_rows():
    train = many("a", 50)
    one = carve({"train": train}, OPEN, seed=1)
    again = carve({"train": train[::-1]}, OPEN, seed=1)
    other = carve({"train": train}, OPEN, seed=2)
    assert {e.example_id for e in one["test"]} == {e.example_id for e in again["test"]}
    assert {e.example_id for e in one["test"]} != {e.example_id for e in other["test"]}


def test_leaks_are_dropped_from_the_training_side_and_counted():
    words = "one two three four five six seven eight nine ten eleven twelve"
    parts, dropped = separate(
        {
            "test": [example("t1", text=words), example("t2", group="shared")],
            "validation": [example("v1", text=words + " thirteen"), example("v2", text="kept here as it is")],
            "train": [
                example("n1", text=words.upper()),
                example("n2", text="kept here as it is"),
                example("n3", group="shared"),
                example("n4", text="quite another text"),
                example("n5", text="quite another text"),
                example("n6", text="quite another text", label="y"),
            ],
        },
        threshold=0.8,
    )
    assert [e.example_id for e in parts["test"]] == ["t1", "t2"]
    assert [e.example_id for e in parts["validation"]] == ["v2"]
    assert [e.example_id for e in parts["train"]] == ["n4"]
    assert dropped == {
        ("validation", "validation row that is a near-duplicate of one in test"): 1,
        ("train", "train row that is a near-duplicate of one in test"): 1,
        ("train", "train row that is a near-duplicate of one in validation"): 1,
        ("train", "train row of a group that test holds"): 1,
        ("train", "train row that occurs twice"): 1,
        ("train", "train row seen with another answer"): 1,
    }


def test_without_a_threshold_groups_alone_are_kept_apart():
    rows = {name: [example(name, text="the same words")] for name in ("train", "validation", "test")}
    assert separate(rows, None)[0] == rows
    grouped = {**rows, "train": [example("a", group="g")], "test": [example("b", group="g")]}
    assert separate(grouped, None)[0]["train"] == []


def test_one_question_about_other_candidates_is_another_one():
    asked = [
        replace(example(f"r{n}", label=None, text="Which of these floats in water?"), candidates=candidates)
        for n, candidates in enumerate([("cork", "lead"), ("gold", "pine"), ("cork", "lead")])
    ]
    kept, dropped = separate({"train": asked, "validation": [], "test": []}, 0.8)
    assert [one.candidates for one in kept["train"]] == [("cork", "lead"), ("gold", "pine")]
    assert dropped == {("train", "train row that occurs twice"): 1}


def splits_of(train: list[Example]) -> dict[str, list[Example]]:
    return {"train": train, "validation": many("a", 3), "test": many("a", 3)}


def test_balanced_limit_gives_what_a_rare_label_lacks_to_the_others():
    train = many("a", 100) + many("b", 50) + many("c", 4)
    kept, _ = draw(splits_of(train), make_data(limits=Limits(train=34, validation=None, test=None)))
    assert Counter(e.label for e in kept["train"]) == {"a": 15, "b": 15, "c": 4}


@pytest.mark.parametrize(
    ("balance", "balanced"),
    [
        ("train", {"train"}),
        ("all", {"train", "validation", "test"}),
        ("none", set()),
        (True, {"train", "validation", "test"}),  # as release 0.1.0 spelled it
        (False, set()),
    ],
)
def test_the_splits_that_balance_names_are_balanced_and_the_others_keep_their_proportions(balance, balanced):
    rows = {split: many("a", 2700) + many("b", 300) for split in ("train", "validation", "test")}
    limits = Limits(train=500, validation=400, test=600)
    kept, _ = draw(rows, make_data(balance=balance, limits=limits))
    for split, part in kept.items():
        rare = sum(e.label == "b" for e in part)
        assert len(part) == getattr(limits, split)
        assert rare == (min(300, len(part) / 2) if split in balanced else pytest.approx(len(part) / 10, abs=25))


def test_a_larger_limit_adds_rows_and_keeps_the_others():
    train = many("a", 50) + many("b", 50)
    small, large = (
        {
            e.example_id
            for e in draw(splits_of(train), make_data(limits=Limits(train=n, validation=None, test=None)))[0]["train"]
        }
        for n in (20, 60)
    )
    assert small < large


def test_labels_of_which_a_tiny_limit_draws_no_row_are_counted():
    train = many("a", 9) + many("b", 3) + many("c", 3)
    kept, refused = draw(splits_of(train), make_data(limits=Limits(train=2, validation=None, test=None)))
    (lost,) = {"a", "b", "c"} - {e.label for e in kept["train"]}
    rows = sum(e.label == lost for e in train)
    assert refused == {("train", f"with a label of which data.limits.train draws no row ('{lost}')"): rows}


FULL = {"train": ["a", "b"], "validation": ["a"], "test": ["b"]}


def labelled(splits: dict[str, list[str | None]]) -> dict[str, list[Example]]:
    return {split: [example(split, label) for label in labels] for split, labels in splits.items()}


@pytest.mark.parametrize(
    ("splits", "carved", "lost", "told"),
    [
        (
            {"test": []},
            [],
            {("test", "R"): 20, ("train", "Z"): 9},
            "no row is left of test; give more rows or groups, or name a split in data.splits; "
            "of test were left out: 20 R",
        ),
        (
            {"train": []},
            [],
            {("train", reason): n for n, reason in enumerate("ABCDEFG", 1)} | {("test", "Z"): 99},
            "no row is left of train; give more rows or groups, or name a split in data.splits; "
            "of train were left out: 7 G; 6 F; 5 E; 4 D; 3 C; ... (7 in all)",
        ),
        ({"test": []}, [], {("train", "R"): 5}, "no row is left of test; give more rows or groups, or name a split"),
        (
            {"validation": []},
            ["validation"],
            {("train", "R"): 88},
            "no row is left of validation, which is carved out of train; give more rows or groups, or name a split in "
            "data.splits; of train were left out: 88 R",
        ),
        ({"train": ["a", "a"]}, [], {}, "only one class ('a') in train; give more rows"),
    ],
)
def test_an_empty_split_or_a_single_class_says_what_became_of_the_rows(splits, carved, lost, told):
    with pytest.raises(UserError, match=f"^data.*: {re.escape(told)}"):
        check_usable(labelled(FULL | splits), carved, Counter(lost))
    check_usable(labelled(FULL), carved, Counter(lost))
    check_usable(labelled({split: [None] for split in FULL}), carved, Counter(lost))  # no classes


@pytest.mark.parametrize(
    ("labels", "shown"),
    [(["new"] * 4, "'new'"), ([f"l{n}" for n in range(5)], "'l0', 'l1', 'l2', ... (5 in all)")],
)
def test_labels_that_training_lacks_are_refused_and_shown(labels, shown):
    test = many("a", 2) + [example(str(n), label) for n, label in enumerate(labels)]
    kept, refused = draw(splits_of(many("a", 3) + many("b", 3)) | {"test": test}, make_data())
    assert {e.label for e in kept["test"]} == {"a"}
    assert refused == {("test", f"with a label that train lacks ({shown})"): len(labels)}
