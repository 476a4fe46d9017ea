"""A task with free answers through prepare, fine-tuning and evaluation."""

import pandas as pd
import pytest

from tests.conftest import write_params
from tests.test_chain import Chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("free")
    rows = ["question,answer", *(f"add {a} and {b},{a} + {b} #### {a + b}" for a in range(12) for b in range(6))]
    (root / "sums.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_params(
        root,
        model__source=str(hub_folder),
        data__source="files",
        data__path="sums.csv",
        data__task="free",
        data__template="{question}:",
        data__answer_column="answer",
        data__group_column=None,
        data__splits={"train": "train", "validation": None, "test": None},
        data__limits={"train": 40, "validation": 8, "test": 8},
        device__kind="cpu",
        device__dtype="float32",
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=["full", "salf"],
        evaluate__bootstrap=20,
        evaluate__generate_tokens=8,
        evaluate__answer_marker="####",
    )
    return Chain(root).run(["full", "salf"])


def test_free_answers_are_scored_by_exact_match_and_loss_per_token(chain):
    metrics = chain.json("reports/metrics.json")
    assert (metrics["task"], metrics["quality"]) == ("free", "exact_match")
    assert set(metrics["baselines"]) == {"untrained"}
    assert metrics["methods"]["full"]["loss"] < metrics["baselines"]["untrained"]["loss"]


def test_every_written_answer_is_kept_beside_its_reference(chain):
    said = pd.read_parquet(chain.root / "reports/predictions.parquet")
    assert set(said.run) == {"untrained", "full-seed1", "salf-seed1"}
    assert said.label.str.contains("####").all()
    for row in said.itertuples():
        written, reference = (text.rpartition("####")[2].split() for text in (row.predicted, row.label))
        assert row.correct == (written == reference)


def test_the_trace_has_a_row_per_answer_token(chain):
    train = pd.read_parquet(chain.root / "data/prepared/train.parquet").set_index("example_id")
    for example, rows in pd.read_parquet(chain.root / "data/traces").groupby("example_id"):
        assert rows.token_id.tolist() == list(train.loc[example].answer_ids)
