"""What evaluate measures beyond the mean over the test split, through the whole chain."""

import csv
import random

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from salf.engine.batches import read_examples
from salf.metrics import BASELINES
from tests.conftest import write_params
from tests.test_chain import Chain

METHODS = ["full", "half", "full+answer", "half+lora"]
COLOURS = {"red": "warm", "blue": "cold", "grey": "dull"}


def write_rows(path, rows, letters, seed, labels=COLOURS):
    """Colours in noise of some letters, as in ``write_colours``; who wrote a row says nothing about its label."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "who"])
        for n in range(rows):
            colour = list(labels)[n % len(labels)]
            first, last = ("".join(rng.choices(letters, k=rng.randint(3, 8))) for _ in range(2))
            writer.writerow([f"{first} {colour} {last}", labels[colour], "abc"[n % 5 % 3] if n % 30 else "rare"])


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("evaluations")
    (root / "rows").mkdir()
    write_rows(root / "rows/train.csv", 160, "abcdefghij", 1)
    write_rows(root / "rows/test.csv", 90, "abcdefghij", 2)
    (root / "rows/copy.csv").write_bytes((root / "rows/test.csv").read_bytes())
    write_rows(root / "rows/far.csv", 60, "uvwxyz", 3, {"red": "warm", "crimson": "warm", "blue": "cold"})
    write_params(
        root,
        model__source=str(hub_folder),
        data__source="files",
        data__path="rows",
        data__template="{text} is",
        data__answer_column="label",
        data__group_column=None,
        data__subgroup_column="who",
        data__splits={
            "train": "train", "validation": None, "test": "test", "shifted": {"again": "copy", "far_away": "far"}
        },
        data__limits={"train": None, "validation": None, "test": None},
        device__kind="cpu",
        device__dtype="float32",
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=METHODS,
        finetune__epochs=1,
        finetune__learning_rate={"full": 0.003, "salf": 0.003, "lora": 0.03, "salf+lora": 0.03, "full+answer": 0.003},
        evaluate__bootstrap=50,
        evaluate__positive_label="warm",
    )  # fmt: skip
    return Chain(root).run(METHODS)


def test_a_shifted_split_is_scored_like_test(chain):
    """A copy of the test split has its scores; resamples differ, because rows are drawn in another order."""
    metrics = chain.json("reports/metrics.json")
    again = metrics["shifted"]["again"]
    for group, names in (("baselines", BASELINES), ("runs", [f"{m}-seed1" for m in METHODS]), ("methods", METHODS)):
        assert list(again[group]) == sorted(names)
        for name, scores in again[group].items():
            expected = metrics[group][name]
            for key in scores.keys() - {key for key in scores if key.endswith(("_low", "_high", "_detectable"))}:
                assert scores[key] == pytest.approx(expected[key], abs=1e-6), (name, key)
    assert again["methods"]["full"]["accuracy_minus_full"] == 0
    far = metrics["shifted"]["far_away"]
    assert far["baselines"]["majority"]["n"] == 60
    train = read_examples(chain.root / "data/prepared", "train")
    commonest = min(COLOURS.values(), key=lambda one: (-sum(e.label == one for e in train), one))
    known = {"warm": 2 / 3, "cold": 1 / 3, "dull": 0.0}
    assert far["baselines"]["majority"]["accuracy"] == pytest.approx(known[commonest])


def test_answers_to_a_shifted_split_are_hugging_faces(chain):
    said = pd.read_parquet(chain.root / "reports/predictions.parquet")
    assert said.groupby("split").size().to_dict() == {"again": 7 * 90, "far_away": 7 * 60, "test": 7 * 90}
    mine = said[(said.split == "far_away") & (said.run == "half-seed1")].set_index("example_id")
    network = AutoModelForCausalLM.from_pretrained(chain.root / "data/models/half-seed1").eval()
    for example in read_examples(chain.root / "data/prepared", "far_away"):
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        with torch.no_grad():
            nats = -network(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        expected = float(nats[len(example.prompt_ids) - 1 :].mean())
        assert mine.loc[example.example_id].loss == pytest.approx(expected, abs=1e-4)


def test_the_comparison_has_columns_of_every_shifted_split(chain):
    table = pd.read_csv(chain.root / "reports/comparison.csv").set_index("name")
    metrics = chain.json("reports/metrics.json")
    assert list(table.index) == ["untrained", "tfidf", "majority", *METHODS]
    for name in METHODS:
        found = metrics["shifted"]["far_away"]["methods"][name]
        assert table.far_away_accuracy[name] == pytest.approx(found["accuracy"])
        assert table.far_away_accuracy_minus_full[name] == pytest.approx(found["accuracy_minus_full"])


def test_groups_have_the_scores_of_their_rows(chain):
    groups = chain.json("reports/metrics.json")["groups"]
    assert list(groups) == ["again", "far_away", "test"]
    assert groups["test"]["pooled"] == ["c", "rare"]
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").query("split == 'test'")
    who = {example.example_id: example.subgroup for example in read_examples(chain.root / "data/prepared", "test")}
    said["who"] = said.example_id.map(who).where(lambda one: one.isin(["a", "b"]), "(pooled)")
    for name, run in [("untrained", "untrained"), ("tfidf", "tfidf"), *((m, f"{m}-seed1") for m in METHODS)]:
        mine = said[said.run == run]
        for group, rows in mine.groupby("who"):
            scores = groups["test"]["by_group"][group][name]["scores"]
            assert scores["accuracy"]["value"] == pytest.approx(rows.correct.mean())
            warm = rows[rows.label == "warm"]
            assert scores["true_positive_rate"]["value"] == pytest.approx((warm.predicted == "warm").mean())
        by_group = mine.groupby("who").correct.mean()
        gap = groups["test"]["gaps"][name]["scores"]["accuracy"]["value"]
        assert gap == pytest.approx(by_group.max() - by_group.min())


@pytest.fixture(scope="module")
def page(chain) -> str:
    chain.stage("report")
    return (chain.root / "reports/index.html").read_text(encoding="utf-8")


def test_the_report_shows_groups(page):
    assert "test by who: 3 groups. Groups of too few examples are pooled: c, rare." in page
    assert "Rates are those of the label warm." in page
    assert page.count("Against the untrained model") == 3


def test_the_report_shows_every_shifted_split_beside_its_baselines(page):
    assert "Quality on shifted test splits" in page
    assert "far_away: 60 examples. Always answering its most frequent label, warm, is right for 66.7" in page
    assert page.count("TF-IDF + logistic regression") >= 3
