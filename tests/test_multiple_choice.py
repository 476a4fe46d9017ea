"""Multiple choice through the whole chain, and every model's choices against Hugging Face's own logits."""

import json

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from salf.engine.batches import read_examples
from tests.conftest import write_params
from tests.test_chain import Chain

ANIMALS = ["cat", "dog", "owl", "eel", "ant"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("choices")
    with (root / "rows.jsonl").open("w") as file:
        for n in range(80):
            names = [ANIMALS[(n + at) % 5] for at in range(2 + n % 3)]
            row = {"q": f"say {names[n % len(names)]} no {n}", "names": [f"the {one}" for one in names]}
            file.write(json.dumps(row | {"right": n % len(names)}) + "\n")
    write_params(
        root,
        model__source=str(hub_folder),
        data__source="files",
        data__path="rows.jsonl",
        data__task="multiple-choice",
        data__template="{q}:",
        data__answer_column="right",
        data__choices__column="names",
        data__group_column=None,
        data__splits={"train": "train", "validation": None, "test": None},
        data__limits={"train": 40, "validation": 8, "test": 16},
        device__kind="cpu",
        device__dtype="float32",
        prepare__near_duplicate=1.0,
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=["salf"],
        evaluate__bootstrap=20,
    )
    return Chain(root).run(["salf"])


def test_choices_are_scored_by_accuracy_beside_baselines(chain):
    metrics = chain.json("reports/metrics.json")
    assert (metrics["task"], metrics["quality"]) == ("multiple-choice", "accuracy")
    assert set(metrics["baselines"]) == {"untrained", "tfidf", "majority"}
    assert metrics["methods"]["salf"]["loss"] < metrics["baselines"]["untrained"]["loss"]
    curve = chain.json("data/models/salf-seed1/run.json")["curve"]
    assert all(0 <= point["validation_accuracy"] <= 1 for point in curve)


@pytest.mark.parametrize("run", ["untrained", "salf-seed1"])
def test_every_choice_is_the_most_probable_one_per_character(chain, run):
    folder = chain.root / ("data/base" if run == "untrained" else f"data/models/{run}")
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    said = pd.read_parquet(chain.root / "reports/predictions.parquet")
    said = said[said.run == run].set_index("example_id")
    for example in read_examples(chain.root / "data/prepared", "test"):
        scores = {}
        for one in example.candidates:
            with torch.no_grad():
                logits = network(torch.tensor([[*example.prompt_ids, *one.ids]])).logits[0].log_softmax(-1)
            places = range(len(example.prompt_ids) - 1, len(example.prompt_ids) - 1 + len(one.ids))
            scores[one.text] = float(logits[list(places), list(one.ids)].sum()) / len(one.text)
        row = said.loc[example.example_id]
        assert scores[row.predicted] == pytest.approx(max(scores.values()), rel=1e-4)
        assert row.correct == (row.predicted == example.answer == row.label)
