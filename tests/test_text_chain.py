"""Plain text through the whole chain: every token is learned, and perplexity is that of a plain transformers loop."""

import html
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import salf
from salf.blocks import document_of
from salf.engine.models.adapter import open_model
from salf.engine.perplexity import perplexity, text_examples
from salf.engine.runtime import choose_runtime
from salf.engine.techniques.dcp import interactions
from salf.files import read_json
from salf.settings import Device
from tests.conftest import write_params
from tests.test_chain import Chain, commands

METHODS = ["full", "half", "salf", "lora", "half+lora", "none", "lisa", "half+dcp"]
RUNS = [f"{method}-seed1" for method in [*METHODS, "longer"]]
BLOCK = 24
POSITIONS = 5
BOOTSTRAP = 200


def write_stories(path, documents: int) -> None:
    """Sentences in which every word tells the next one."""
    draw, after = random.Random(0), {"red": "fox", "fox": "ran", "ran": "far", "far": "red", "a": "dog", "dog": "a"}
    with path.open("w", encoding="utf-8") as file:
        for n in range(documents):
            words = [draw.choice(list(after))]
            while len(words) < draw.randint(3, 14):
                words.append(after[words[-1]] if draw.random() < 0.9 else draw.choice(list(after)))
            file.write(json.dumps({"story": f"{n}: {' '.join(words)}"}) + "\n")


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("text")
    write_stories(root / "stories.jsonl", 80)
    rate = {"full": [0.0001, 0.01], "salf": 0.01, "lora": 0.01, "salf+lora": 0.01, "lisa": 0.01}
    write_params(
        root,
        model__source=str(hub_folder),
        data__source="files",
        data__path="stories.jsonl",
        data__task="text",
        data__template="{story}",
        data__text={"block_tokens": BLOCK, "separator": None},
        data__group_column=None,
        data__splits={"train": "train", "validation": None, "test": None},
        data__limits={"train": None, "validation": None, "test": None},
        prepare__near_duplicate=1.0,
        device__kind="cpu",
        device__dtype="float32",
        trace__sample=20,
        trace__losses=10,
        trace__positions=POSITIONS,
        fit__bootstrap=20,
        compare__methods=METHODS,
        compare__variants={"longer": {"method": "half", "equal_compute": True}},
        finetune__learning_rate=rate,
        finetune__dcp__width=4,
        finetune__dcp__bias=0.5,
        evaluate__bootstrap=BOOTSTRAP,
    )
    stages = commands(METHODS)
    (variant,) = (one for one in stages if "half-seed1" in " ".join(one))
    variant = [word.replace("half-seed1", "longer-seed1") for word in variant]
    variant[variant.index("--method") : variant.index("--method") + 2] = ["--variant", "longer"]
    chain = Chain(root)
    for folder in ("data", "reports"):
        (root / folder).mkdir()
    for name, *argv in stages:
        if name == "evaluate":
            chain.stage(*variant)
        chain.stage(name, *argv)
    chain.stage("report")
    return chain


@pytest.fixture(scope="module")
def blocks(chain) -> pd.DataFrame:
    return pd.read_parquet(chain.root / "data/prepared/test.parquet")


def plain_loop(folder, blocks: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Sum of −log probabilities and number of predicted tokens of each block, by transformers alone.

    Of models that drop tokens it is transformers with hooks of ours (techniques/test_dcp).
    """
    network = salf.pruned(AutoModelForCausalLM.from_pretrained(folder), folder)
    nats, tokens = [], []
    for row in blocks.itertuples():
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]], dtype=torch.long)
        labels = ids.clone()
        labels[:, : len(row.prompt_ids)] = -100
        with torch.no_grad():
            nats.append(float(network(ids, labels=labels).loss) * len(row.answer_ids))
        tokens.append(len(row.answer_ids))
    return np.array(nats), np.array(tokens)


@pytest.fixture(scope="module")
def expected(chain, blocks) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folders = {"untrained": "data/base", **{run: f"data/models/{run}" for run in RUNS}}
    return {name: plain_loop(chain.root / folder, blocks) for name, folder in folders.items()}


def test_perplexity_is_that_of_a_plain_loop(chain, expected, blocks):
    """To 1e-4 of its value: float32 sums in another order."""
    metrics = chain.json("reports/metrics.json")
    assert (metrics["task"], metrics["quality"]) == ("text", "perplexity")
    assert set(metrics["baselines"]) == {"untrained"}
    assert set(metrics["runs"]) == set(RUNS)
    for name, scores in {**metrics["baselines"], **metrics["runs"]}.items():
        nats, tokens = expected[name]
        assert scores["loss"] == pytest.approx(nats.sum() / tokens.sum(), rel=1e-4)
        assert scores["perplexity"] == pytest.approx(np.exp(nats.sum() / tokens.sum()), rel=1e-4)
        assert scores["n"] == len(blocks)
        assert not any("accuracy" in key for key in scores if key != "validation_accuracy")
    untrained = metrics["baselines"]["untrained"]["perplexity"]
    assert all(run["perplexity"] < untrained for run in metrics["runs"].values())
    assert metrics["methods"]["full"]["perplexity"] < untrained / 4


def test_intervals_resample_documents_and_differences_are_paired(chain, expected, blocks):
    metrics = chain.json("reports/metrics.json")
    documents = np.array([document_of(name) for name in blocks.example_id])
    assert metrics["intervals"]["over"] == "documents"
    names = sorted(set(documents))
    assert 10 <= len(names) < len(documents)
    picks = np.random.default_rng(1).integers(len(names), size=(BOOTSTRAP, len(names)))

    def resampled(run):
        nats, tokens = ([part[documents == name].sum() for name in names] for part in expected[run])
        return np.exp(np.array(nats)[picks].sum(axis=1) / np.array(tokens)[picks].sum(axis=1))

    for method in ("half", "lora"):
        scores, mine, full = metrics["methods"][method], resampled(f"{method}-seed1"), resampled("full-seed1")
        for end, share in (("low", 0.025), ("high", 0.975)):
            assert scores[f"perplexity_{end}"] == pytest.approx(np.quantile(mine, share), rel=1e-3)
            assert scores[f"perplexity_minus_full_{end}"] == pytest.approx(
                np.quantile(mine - full, share), rel=1e-2, abs=1e-3
            )


def test_a_rate_is_chosen_by_validation_loss_and_equal_compute_trains_longer(chain):
    full, half, longer = (chain.json(f"data/models/{name}-seed1/run.json") for name in ("full", "half", "longer"))
    losses = {one["rate"]: one["validation_loss"] for one in full["grid"]}
    assert full["learning_rate"] == min(losses, key=losses.get)
    assert [one["validation_accuracy"] for one in full["grid"]] == [None, None]
    assert longer["epochs"] > half["epochs"]
    assert longer["flops"] <= full["flops"]


def test_the_trace_samples_positions_of_every_block(chain):
    train = pd.read_parquet(chain.root / "data/prepared/train.parquet").set_index("example_id")
    traces = pd.read_parquet(chain.root / "data/traces")
    assert traces.example_id.nunique() == 20
    drawn = set()
    for example, rows in traces.groupby("example_id"):
        ids = train.loc[example].answer_ids
        assert len(rows) == min(POSITIONS, len(ids))
        assert rows.position.is_monotonic_increasing
        assert rows.token_id.tolist() == [ids[at] for at in rows.position]
        drawn.add(tuple(rows.position))
    assert len(drawn) > 5
    assert traces.groupby("example_id").loss.apply(lambda one: one.notna().all()).sum() == 10


def test_tables_and_page_show_perplexity_in_the_place_of_accuracy(chain):
    table = pd.read_csv(chain.root / "reports/comparison.csv").set_index("name")
    metrics = chain.json("reports/metrics.json")
    assert table.perplexity["half"] == metrics["methods"]["half"]["perplexity"]
    assert "perplexity_minus_full_low" in table
    assert "accuracy" not in table
    page = (chain.root / "reports/index.html").read_text(encoding="utf-8")
    assert "test perplexity" in page
    assert "accuracy" not in page.lower().replace("not accuracy", "")  # of the frontier's axis
    said = pd.read_parquet(chain.root / "reports/predictions.parquet")
    assert set(said.run) == {"untrained", *RUNS}
    assert said.correct.isna().all()


@torch.no_grad()
def test_what_a_pruned_model_keeps_is_in_the_metrics_and_on_the_page(chain, blocks):
    folder = chain.root / "data/models/half+dcp-seed1"
    network = salf.pruned(AutoModelForCausalLM.from_pretrained(folder), folder)
    shares, last = [], []
    for row in blocks.itertuples():
        ids = [*row.prompt_ids, *row.answer_ids][:-1]
        network(torch.tensor([ids]), use_cache=False)
        kept = [(own.decide(*own.rows().chunk(2, -1)) == 0)[0].tril() for own in interactions(network)]
        pairs = max(len(ids) * (len(ids) - 1) // 2, 1)
        shares.append([(int(one.sum()) - len(ids)) / pairs for one in kept])
        last = last or ["".join("01"[int(flag)] for flag in one[-1]) for one in kept]
    found = chain.json("reports/metrics.json")["kept"]["half+dcp-seed1"]
    layers = list(map(str, range(3, 5)))
    assert found["layers"] == pytest.approx(dict(zip(layers, np.mean(shares, 0), strict=True)), abs=1e-3)
    assert found["share"] == pytest.approx(np.mean(shares), abs=1e-3)
    assert 0 < found["share"] < 1
    assert found["kept"] == dict(zip(layers, last, strict=True))
    assert {"0", "1"} <= set("".join(last))
    assert "".join(found["tokens"]).endswith(blocks.text[0][:-1])  # the last token is never read
    page = (chain.root / "reports/index.html").read_text(encoding="utf-8")
    seen = "".join(token if flag == "1" else "·" for token, flag in zip(found["tokens"], last[0], strict=True))
    assert f'<td class="">{html.escape(seen)}</td>' in page


def test_any_opened_model_reads_any_text(chain, hub_folder):
    """The function for other code: documents in, perplexity out."""
    documents = ["the red fox ran far", "a dog", "x" * 60]
    length = read_json(hub_folder / "config.json")["max_position_embeddings"]
    runtime = choose_runtime(Device(kind="cpu", dtype="float32"))
    model = open_model(chain.root / "data/models/full-seed1", runtime.device, base=chain.root / "data/base")
    made = text_examples(hub_folder, documents, min(BLOCK, length))
    read, count = perplexity(model, runtime, made, batch_tokens=40)
    rows = pd.DataFrame([{"prompt_ids": one.prompt_ids, "answer_ids": one.answer_ids} for one in made])
    nats, tokens = plain_loop(chain.root / "data/models/full-seed1", rows)
    assert len(made) == 1 + 1 + 3
    assert count == tokens.sum()
    assert read == pytest.approx(np.exp(nats.sum() / tokens.sum()), rel=1e-4)
