"""Objectives through the whole chain: what pace logs; a distilled model is used without the worked examples."""

import shutil

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from salf.errors import UserError
from salf.files import read_json, write_json
from salf.records import FineTuneRecord
from tests.conftest import write_tiny_task
from tests.test_chain import Chain, commands

METHODS = ["full", "half+lora+pace", "half+distill"]
EXAMPLES = "deep sky is blue\nred rose is red\n"


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("objectives")
    write_tiny_task(
        root,
        hub_folder,
        data__template=f"{EXAMPLES}{{text}} is",
        data__limits={"train": 60, "validation": 12, "test": 30},
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=METHODS,
        finetune__epochs=2,
        finetune__learning_rate={"full": 0.003, "salf": [0.001, 0.01], "salf+lora": 0.03},
        evaluate__bootstrap=20,
    )
    made = Chain(root).run(METHODS)
    made.stage("report", "--out", "reports/index.html", "--figures", "reports/figures")
    return made


def test_norm_gap_and_shift_are_in_the_record_the_table_and_the_report(chain):
    first, *curve = FineTuneRecord.load(chain.root / "data/models/half+lora+pace-seed1").curve
    assert first.shift == 0
    assert all(point.gradient_norm > 0 and point.shift > 0 and point.gap is not None for point in curve)
    table = pd.read_csv(chain.root / "reports/curves.csv").set_index("run")
    assert table.loc["half+lora+pace-seed1", "shift"].tolist() == [0, *(point.shift for point in curve)]
    assert table.loc["full-seed1", "shift"].isna().all()
    assert (table.loc["full-seed1", "gradient_norm"].iloc[1:] > 0).all()
    page = (chain.root / "reports/index.html").read_text(encoding="utf-8")
    assert all(f'id="fig-{name}"' in page for name in ("gradient-norm", "gap", "shift"))


def test_a_distilled_models_answers_are_transformers_to_prompts_without_the_worked_examples(chain):
    folder = chain.root / "data/models/half+distill-seed1"
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    words = {label["label"]: label["token_ids"] for label in chain.json("data/prepared/meta.json")["labels"]}
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").query("run == 'half+distill-seed1'")
    for row in said.itertuples():
        prompt = tokenizer(f"{row.text} is").input_ids
        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *words[row.label]]])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(words[row.label])).item()
        assert row.loss == pytest.approx(loss, rel=1e-4)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Each prompt, without the text before its first column, which the base alone read:" in card


def test_a_chats_prompts_are_not_shortened(chain):
    """Said by the stage itself, whatever params.yaml holds now."""
    shutil.copytree(chain.root / "data/prepared", chain.root / "data/chat")
    meta = chain.root / "data/chat/meta.json"
    write_json(meta, {**read_json(meta), "chat_template": "a digest"})
    _, *argv = commands(["half+distill"])[-2]
    argv[argv.index("data/prepared")] = "data/chat"
    with pytest.raises(
        UserError, match=r"half\+distill: prepare.chat_template cannot be combined with distill: what all"
    ):
        chain.stage("finetune", *argv)
