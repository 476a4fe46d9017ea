"""Sparse and quantised forms and class heads through the whole chain: what they log, and whose answers are scored."""

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import salf
from salf.records import FineTuneClock, FineTuneRecord
from tests.conftest import write_tiny_task
from tests.test_chain import Chain

METHODS = ["full", "half", "half+head", "half+sift", "half+roste"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("forms")
    write_tiny_task(
        root,
        hub_folder,
        data__limits={"train": 60, "validation": 12, "test": 30},
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=METHODS,
        finetune__epochs=1,
        finetune__learning_rate={"full": 0.003, "salf": 0.01},
        finetune__roste__kv_bits=3,
        evaluate__bootstrap=20,
        evaluate__shift={"examples": 8, "neutral": None},
    )
    return Chain(root).run(METHODS)


def test_gradients_share_grids_errors_and_the_optimizers_memory_are_recorded(chain):
    records = {name: FineTuneRecord.load(chain.root / f"data/models/{name}-seed1") for name in METHODS}
    clocks = {name: FineTuneClock.load(chain.root / f"reports/runs/{name}-seed1.json") for name in METHODS}
    assert records["half"].observed == {}
    (share,) = records["half+sift"].observed.values()
    assert 0.1 < share < 1
    seen = records["half+roste"].observed
    assert 0 <= seen["share of sites rotated"] <= 1
    for what in ("error of weights", "error of activations"):
        assert 0 < seen[what] < 1
        assert 0 < seen[f"{what}, rotated"] < 1
    for what in ("outliers of weights", "outliers of activations"):
        assert seen[what] > 1
        assert seen[f"{what}, rotated"] > 1
    assert clocks["half+sift"].optimizer_bytes < clocks["half"].optimizer_bytes / 50
    assert clocks["half+roste"].optimizer_bytes == clocks["half"].optimizer_bytes
    assert records["half+sift"].trained_parameters < records["half"].trained_parameters / 50
    assert records["half+roste"].flops > records["half"].flops


@pytest.mark.parametrize("name", ["half+sift", "half+roste"])
def test_the_models_that_transformers_opens_are_those_that_were_scored(chain, name):
    folder = chain.root / f"data/models/{name}-seed1"
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    network = salf.quantised(AutoModelForCausalLM.from_pretrained(folder), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = {label["label"]: label["token_ids"] for label in chain.json("data/prepared/meta.json")["labels"]}
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").query(f"run == '{name}-seed1'")
    apart = []
    for row in said.itertuples():
        prompt = tokenizer(f"{row.text} is").input_ids
        losses = []
        for model in (network, alone):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *words[row.label]]])).logits[0, len(prompt) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(words[row.label])).item())
        apart.append((abs(row.loss - losses[0]), abs(row.loss - losses[1])))
    theirs, unquantised = pd.DataFrame(apart).median()
    assert theirs < 1e-3  # half of the examples at least, of which no sum's last digit decides between two levels
    assert (unquantised > 0.003) == (name == "half+roste")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert ("`salf.quantised(model, folder)` computes as in training" in card) == (name == "half+roste")


def test_transformers_classifier_gives_the_answers_that_were_scored(chain):
    folder = chain.root / "data/models/half+head-seed1"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").query("run == 'half+head-seed1'")
    assert len(said) == 30
    for row in said.itertuples():
        with torch.no_grad():
            shares = model.eval()(torch.tensor([tokenizer(f"{row.text} is").input_ids])).logits[0].softmax(-1)
        assert model.config.id2label[int(shares.argmax())] == row.predicted
        assert row.probability == pytest.approx(float(shares.max()), rel=1e-3)
        assert row.loss == pytest.approx(-float(shares[model.config.label2id[row.label]].log()), rel=1e-3, abs=1e-5)
    metrics = chain.json("reports/metrics.json")
    assert set(metrics["shift"]["test"]["models"]) == {"untrained", *METHODS} - {"half+head"}
    record = FineTuneRecord.load(folder)
    assert record.trained_parameters > FineTuneRecord.load(chain.root / "data/models/half-seed1").trained_parameters
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "`AutoModelForSequenceClassification` opens the folder" in card
