"""What evaluate measures beyond the mean over the test split, through the whole chain."""

import csv
import json
import random

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from salf import AnswerSideModel
from salf.engine.batches import Split, read_examples
from salf.engine.boundary_cache.cache import CacheSettings
from salf.engine.perplexity import text_examples
from salf.engine.rules import CandidateRule
from salf.engine.runtime import choose_runtime
from salf.files import sha256_file
from salf.metrics import BASELINES
from salf.records import BaseRecord, FineTuneRecord, PreparedRecord
from stages.common.params import load_params
from stages.evaluate.pairs import preferences, read_pairs
from stages.evaluate.predict import Predictor
from stages.evaluate.scores import Bootstrap
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
    pairs = [{"prompt": f"{n} red is", "wanted": "warm", "unwanted": "cold"} for n in range(30)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (root / "text.txt").write_text("the sea was calm and the sky was grey " * 90)
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
        evaluate__pairs="pairs.jsonl",
        evaluate__shift={"examples": 16, "neutral": "text.txt"},
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


def test_pairs_are_read_by_every_model(chain):
    found = chain.json("reports/metrics.json")["pairs"]
    assert set(found["models"]) == {"untrained", *METHODS}
    assert (found["pairs"], found["sha256"]) == (30, sha256_file(chain.root / "pairs.jsonl"))
    assert found["models"]["full"]["minus_base"]["unwanted_margin"]["high"] < 0  # red is warm: it was learned
    pair = read_pairs(chain.root / "pairs.jsonl", chain.root / "data/base")[0]
    opened = AnswerSideModel.from_pretrained(chain.root / "data/models/full+answer-seed1")
    rows, point = [], len(pair.prompt_ids) - 1  # the last prompt token predicts, so it is on the trained side
    for one in pair.candidates:
        labels = [*[-100] * len(pair.prompt_ids), *one.ids]
        rows.append({"input_ids": [*pair.prompt_ids, *one.ids], "labels": labels, "split": point})
    wanted, unwanted = opened.score(rows).tolist()
    one = chain_pairs_of(chain, [pair])
    assert one == pytest.approx(unwanted / len("cold") - wanted / len("warm"), abs=1e-5)


def chain_pairs_of(chain, pairs):
    """The margin of some pairs by the answer-side model, as evaluate reads them."""
    record = FineTuneRecord.load(chain.root / "data/models/full+answer-seed1")
    params, meta = load_params(chain.root / "params.yaml"), PreparedRecord.load(chain.root / "data/prepared")
    cache = CacheSettings.of("off", "", 1)
    runtime, base = choose_runtime(params.device), chain.root / "data/base"
    splits = {"pairs": Split(pairs, 0)}
    predictor = Predictor(runtime, params.evaluate, meta, base, BaseRecord.load(base).shards, cache, splits)
    folder = chain.root / "data/models/full+answer-seed1"
    ready = predictor.open_answer_side(folder, "some", record.params.finetune.answer_side)
    said = predictor.read(ready, "pairs", CandidateRule("character"))
    return preferences(said, Bootstrap(len(pairs), 20, 0.9, 0))["unwanted_margin"].value


def test_shift_is_measured_on_test_and_neutral_text(chain):
    shift = chain.json("reports/metrics.json")["shift"]
    assert {text: found["examples"] for text, found in shift.items()} == {"test": 16, "neutral text": 16}
    assert set(shift["test"]["models"]) == {"untrained", *METHODS}
    assert set(shift["neutral text"]["models"]) == {"untrained", *METHODS} - {"full+answer"}
    for found in shift.values():
        for name, layers in found["layers"].items():
            frozen = 3 if name.startswith("half") else 0 if name == "full" else 1
            assert [value == 0 for value in layers] == [True] * frozen + [False] * (5 - frozen), name
            assert found["models"][name]["scores"]["kl_from_base"]["low"] > 0
        values = {name: one["scores"]["kl_from_base"]["value"] for name, one in found["models"].items()}
        share = found["models"]["half"]["share_of_full"]["kl_from_base"]["value"]
        assert share == pytest.approx(values["half"] / values["full"])
    assert "share_of_full" not in shift["test"]["models"]["full+answer"]


def test_the_shift_of_full_fine_tuning_is_that_of_hugging_faces_logits(chain):
    blocks = text_examples(chain.root / "data/base", [(chain.root / "text.txt").read_text()], 128)[:16]
    base, full = (
        AutoModelForCausalLM.from_pretrained(chain.root / folder).eval()
        for folder in ("data/base", "data/models/full-seed1")
    )
    found = []
    for block in blocks:
        ids = torch.tensor([block.inputs])
        with torch.no_grad():
            p, q = (network(ids).logits[0].double().log_softmax(-1) for network in (full, base))
        found.append((p.exp() * (p - q)).sum(-1))
    told = chain.json("reports/metrics.json")["shift"]["neutral text"]["models"]["full"]["scores"]["kl_from_base"]
    assert told["value"] == pytest.approx(float(torch.cat(found).mean()), rel=1e-4)


def test_the_report_shows_the_shift(page):
    assert "KL divergence per token on 16 examples of neutral text" in page
    assert "Shift by layer on test" in page


@pytest.fixture(scope="module")
def page(chain) -> str:
    chain.stage("report")
    return (chain.root / "reports/index.html").read_text(encoding="utf-8")


def test_the_report_shows_pairs(page):
    assert "30 pairs of pairs.jsonl. A margin above zero prefers the unwanted continuation." in page
    assert "Margin of unwanted answers by depth of freezing" in page
    assert "Margin of unwanted answers by rank" not in page  # one rank


def test_the_report_shows_groups(page):
    assert "test by who: 3 groups. Groups of too few examples are pooled: c, rare." in page
    assert "Rates are those of the label warm." in page
    assert page.count("Against the untrained model") >= 3


def test_the_report_shows_every_shifted_split_beside_its_baselines(page):
    assert "Quality on shifted test splits" in page
    assert "far_away: 60 examples. Always answering its most frequent label, warm, is right for 66.7" in page
    assert page.count("TF-IDF + logistic regression") >= 3
