"""Methods with ``+answer`` through the whole chain; every answer against transformers' own cache, base and tuned."""

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from salf import AnswerSideModel
from salf.engine.batches import read_examples
from tests.conftest import write_tiny_task
from tests.test_chain import Chain

METHODS = ["full", "full+answer", "freeze-2+answer", "full+answer+lora"]
ANSWERING = METHODS[1:]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    root = tmp_path_factory.mktemp("answers")
    write_tiny_task(
        root,
        hub_folder,
        data__limits={"train": 60, "validation": 12, "test": 30},
        trace__sample=20,
        trace__losses=20,
        fit__bootstrap=20,
        compare__methods=METHODS,
        finetune__epochs=3,
        finetune__learning_rate={
            "full": 0.003, "full+answer": [0.003, 0.01], "salf+answer": 0.02, "full+answer+lora": 0.03
        },
        finetune__answer_side={"from": "field", "extra": 2},
        evaluate__bootstrap=20,
    )  # fmt: skip
    return Chain(root).run(METHODS)


def log_probability(base, tuned, prompt, end, answer):
    """Of an answer, nats; the base reads ``prompt[:end]``, the tuned network the rest."""
    ids = torch.tensor([[*prompt, *answer]])
    places = torch.arange(end, ids.shape[1])
    with torch.no_grad():
        past = base(ids[:, :end], use_cache=True).past_key_values
        logits = tuned(ids[:, end:], past_key_values=past, position_ids=places[None], cache_position=places).logits[0]
    said = logits.log_softmax(-1)
    return sum(float(said[len(prompt) - 1 - end + at, token]) for at, token in enumerate(answer))


@pytest.mark.parametrize("method", ANSWERING)
def test_predictions_are_those_of_transformers_own_cache(chain, method):
    """Label words have several tokens; the base reads all of a text but the last two tokens."""
    folder = chain.root / f"data/models/{method}-seed1"
    base = AutoModelForCausalLM.from_pretrained(chain.root / "data/base", attn_implementation="eager").eval()
    opened = AnswerSideModel.from_pretrained(
        folder, AutoModelForCausalLM.from_pretrained(chain.root / "data/base", attn_implementation="eager")
    )
    words = {label["label"]: label["token_ids"] for label in chain.json("data/prepared/meta.json")["labels"]}
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").query("run == @method + '-seed1'")
    said = said.set_index("example_id")
    for example in read_examples(chain.root / "data/prepared", "test")[:8]:
        end = example.field_end - 2
        nats = {w: log_probability(base, opened.trained, example.prompt_ids, end, ids) for w, ids in words.items()}
        assert said.loss[example.example_id] == pytest.approx(
            -nats[example.label] / len(words[example.label]), rel=1e-3
        )
        told = {w: log_probability(base, opened.trained, example.prompt_ids, end, ids[:2]) for w, ids in words.items()}
        assert said.predicted[example.example_id] == max(told, key=told.__getitem__)  # their first letters differ


@pytest.mark.parametrize("method", ANSWERING)
def test_answers_are_learned_and_only_the_answer_side_changes(chain, method):
    metrics, record = chain.json("reports/metrics.json"), chain.json(f"data/models/{method}-seed1/run.json")
    assert metrics["methods"][method]["loss"] < metrics["baselines"]["untrained"]["loss"]
    assert record["flops"] < metrics["runs"]["full-seed1"]["flops"]
    layers = {"full+answer": range(1, 5), "freeze-2+answer": (3, 4)}.get(method, ())
    shards = [f"layer-{layer:02d}" for layer in layers] + ["final"] * bool(layers)
    assert record["changed_units"] == shards
    held = {file.stem for file in (chain.root / f"data/models/{method}-seed1").glob("*.safetensors")}
    assert held >= set(shards)
    assert "embedding" not in held


@pytest.mark.parametrize("method", ANSWERING)
def test_plain_transformers_refuses_the_folder(chain, method):
    with pytest.raises(Exception, match=r"salf_answer_side|does not appear to have a file named"):
        AutoModelForCausalLM.from_pretrained(chain.root / f"data/models/{method}-seed1")


def test_one_cache_serves_all_methods_above_a_boundary(chain):
    clocks = {method: chain.json(f"reports/runs/{method}-seed1.json") for method in ANSWERING}
    origins = {method: clock["prompts"]["training"]["origin"] for method, clock in clocks.items()}
    assert origins == {"full+answer": "computed", "freeze-2+answer": "computed", "full+answer+lora": "reused"}
    assert "prompts" not in chain.json("reports/runs/full-seed1.json")


def test_a_data_folder_of_an_older_release_is_refused_in_one_line(chain, capsys, monkeypatch):
    import pyarrow.parquet as pq

    from stages.finetune.__main__ import main

    monkeypatch.chdir(chain.root)
    for split in ("train", "validation", "test"):
        file = chain.root / f"data/prepared/{split}.parquet"
        table = pq.read_table(file)
        pq.write_table(table.drop(["field_end", "turn_end"]), file)
    argv = ["--base", "data/base", "--prepared", "data/prepared", "--plan", "data/plan/freeze_plan.json"]
    argv += ["--method", "full+answer", "--seed", "2", "--out", "data/models/x", "--measured", "x.json"]
    with pytest.raises(Exception, match="where the field of a prompt ends: run prepare again"):
        main(argv)
    assert not (chain.root / "data/models/x").exists()
