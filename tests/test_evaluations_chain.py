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
from salf.engine.perplexity import text_examples
from salf.engine.rules import CandidateRule
from salf.engine.runtime import choose_runtime
from salf.files import sha256_file
from salf.metrics import BASELINES
from salf.records import BaseRecord, FineTuneRecord, PreparedRecord
from salf.settings import Caching
from stages.common.params import load_params
from stages.evaluate.pairs import preferences, read_pairs
from stages.evaluate.predict import Predictor
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
        evaluate__pairs="pairs.jsonl",
        evaluate__shift={"examples": 16, "neutral": "text.txt"},
    )  # fmt: skip
    return Chain(root).run(METHODS)


def test_a_shifted_split_is_scored_like_test(chain):
    """A copy of the test split has its scores; resamples differ, because rows are drawn in another order."""
    metrics = chain.json("reports/metrics.json")
    again, far = metrics["shifted"]["again"], metrics["shifted"]["far_away"]
    assert (again["examples"], far["examples"]) == (90, 60)
    expected = {**metrics["baselines"], **metrics["methods"]}
    assert set(again["models"]) == set(expected) == {*BASELINES, *METHODS}
    for name, found in again["models"].items():
        for score, one in found["scores"].items():
            assert one["value"] == pytest.approx(expected[name][score], abs=1e-6), (name, score)
        if name in METHODS:
            gap = found["minus_full"]["accuracy"]["value"]
            assert gap == pytest.approx(expected[name]["accuracy_minus_full"])
    train = read_examples(chain.root / "data/prepared", "train")
    commonest = min(COLOURS.values(), key=lambda one: (-sum(e.label == one for e in train), one))
    known = {"warm": 2 / 3, "cold": 1 / 3, "dull": 0.0}
    assert far["models"]["majority"]["scores"]["accuracy"]["value"] == pytest.approx(known[commonest])


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
        found = metrics["shifted"]["far_away"]["models"][name]["scores"]
        assert table.far_away_accuracy[name] == pytest.approx(found["accuracy"]["value"])
        assert table.far_away_loss_high[name] == pytest.approx(found["loss"]["high"])


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
            scores = groups["test"]["groups"][group]["models"][name]["scores"]
            assert scores["accuracy"]["value"] == pytest.approx(rows.correct.mean())
        by_group = mine.groupby("who").correct.mean()
        gap = groups["test"]["gaps"]["models"][name]["scores"]["accuracy"]["value"]
        assert gap == pytest.approx(by_group.max() - by_group.min())


def test_pairs_are_read_by_every_model(chain):
    found = chain.json("reports/metrics.json")["pairs"]
    assert set(found["models"]) == {"untrained", *METHODS}
    assert (found["examples"], found["sha256"]) == (30, sha256_file(chain.root / "pairs.jsonl"))
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
    cache = Caching(cache="off", cache_folder="unused", cache_gib=1)
    runtime, base = choose_runtime(params.device), chain.root / "data/base"
    splits = {"pairs": Split(pairs, 0)}
    predictor = Predictor(runtime, params.evaluate, meta, base, BaseRecord.load(base).shards, cache, splits)
    folder = chain.root / "data/models/full+answer-seed1"
    ready = predictor.open_answer_side(folder, "some", record.params.finetune.answer_side)
    said = predictor.read(ready, "pairs", CandidateRule("character"))
    return preferences(said)["unwanted_margin"][0].mean()


def test_shift_is_measured_on_test_and_neutral_text(chain):
    shift = chain.json("reports/metrics.json")["shift"]
    after = shift.pop("test, after the prompts' data")
    assert (set(after["models"]), list(after["layers"])) == ({"untrained", "full+answer"}, ["full+answer"])
    assert after["models"]["full+answer"]["share_of_full"] == {}
    assert set(shift) == {"test", "neutral text"}
    for found in (after, *shift.values()):
        assert found["examples"] == 16
        for name, layers in found["layers"].items():
            frozen = {"full": 0, "full+answer": 1}.get(name, 3)  # embeddings and frozen layers
            assert [value == 0 for value in layers] == [True] * frozen + [False] * (5 - frozen), name
            assert found["models"][name]["scores"]["kl_from_base"]["low"] > 0
    for found in shift.values():
        assert set(found["models"]) == {"untrained", *METHODS} - {"full+answer"}
        values = {name: one["scores"]["kl_from_base"]["value"] for name, one in found["models"].items()}
        assert values["untrained"] == 0
        share = found["models"]["half"]["share_of_full"]["kl_from_base"]["value"]
        assert share == pytest.approx(values["half"] / values["full"])


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


@pytest.fixture(scope="module")
def page(chain) -> str:
    chain.stage("report")
    return (chain.root / "reports/index.html").read_text(encoding="utf-8")


def test_the_report_shows_every_panel(page):
    for words in (
        "far_away: 60 examples. Its most frequent label, warm, is right for 66.7",
        "test by who: 3 groups. Groups of too few examples are pooled: c, rare.",
        "30 pairs of pairs.jsonl: how often the unwanted continuation is more probable",
        "Margin of unwanted answers, by last frozen layer",
        "KL divergence in nats per token on 16 examples of neutral text",
        "KL from the base on test, by layer",
    ):
        assert words in page, words
    assert "by rank" not in page  # there is one
    assert page.count("Against the untrained model") == 2 + 3 + 1 + 3
