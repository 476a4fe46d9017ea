"""Methods with ``+answer`` through the whole chain; every answer against transformers' own cache, base and tuned."""

import json
import shutil

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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


def test_conversations_are_answered_freely_after_the_last_turn(tmp_path, hub_folder):
    """What is written is what a greedy loop over transformers' own cache writes; turns end before ``a:``."""
    hub = shutil.copytree(hub_folder, tmp_path / "hub")
    (hub / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    turns = [
        [{"role": "user", "content": f"add {a} and {b}"}, {"role": "assistant", "content": f"it is {a + b}"}]
        for a in range(12)
        for b in range(4)
    ]
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    write_tiny_task(
        tmp_path,
        hub,
        data__path="turns.jsonl",
        data__task="free",
        data__messages="messages",
        data__limits={"train": 24, "validation": 4, "test": 6},
        prepare__chat_template=True,
        prepare__near_duplicate=None,
        trace__sample=8,
        trace__losses=8,
        fit__bootstrap=20,
        compare__methods=["full", "full+answer"],
        finetune__epochs=1,
        finetune__learning_rate={"full": 0.01, "full+answer": 0.01},
        finetune__answer_side={"from": "turn", "extra": 0, "keys_values": "int8"},
        evaluate__bootstrap=20,
        evaluate__generate_tokens=6,
    )
    chain = Chain(tmp_path).run(["full", "full+answer"])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "data/base").eval()
    opened = AnswerSideModel.from_pretrained(tmp_path / "data/models/full+answer-seed1", base)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "data/base")
    said = pd.read_parquet(tmp_path / "reports/predictions.parquet").query("run == 'full+answer-seed1'")
    said = said.set_index("example_id").predicted
    for example in read_examples(chain.root / "data/prepared", "test"):
        end = example.turn_end
        assert tokenizer.decode(example.prompt_ids[end:]) == "a:"
        with torch.no_grad():
            past = base(torch.tensor([example.prompt_ids[:end]]), use_cache=True).past_key_values
            rest, written = list(example.prompt_ids[end:]), []
            while len(written) < 6 and written[-1:] != [1]:
                logits = opened.trained(torch.tensor([rest]), past_key_values=past, use_cache=True).logits
                rest = [int(logits[0, -1].argmax())]
                written += rest
        assert said[example.example_id] == tokenizer.decode(written, skip_special_tokens=True)
