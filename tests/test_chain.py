"""The whole chain, stage by stage, on a small random model and a task that it can learn."""

import json
import os
import shutil
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from salf.methods import method_of
from salf.records import FineTuneRecord
from tests.conftest import write_tiny_task

METHODS = ["full", "salf", "lora", "salf+lora", "none", "freeze-1", "lisa"]
MEASURED = {"comparison.csv"}  # and reports/runs: seconds and memory of this machine


class Chain:
    """A folder in which the stages run in-process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, name: str, *argv: str) -> None:
        before = Path.cwd()
        os.chdir(self.root)
        try:
            import_module(f"stages.{name}.__main__").main(list(argv))
        finally:
            os.chdir(before)

    def run(self, methods: list[str]) -> "Chain":
        (self.root / "data").mkdir()
        (self.root / "reports").mkdir()
        for name, *argv in commands(methods):
            self.stage(name, *argv)
        return self

    def json(self, path: str):
        return json.loads((self.root / path).read_text(encoding="utf-8"))

    def bytes_of_all(self) -> dict[str, bytes]:
        """Every artifact but what was measured, by its path."""
        found = {}
        for file in sorted(self.root.rglob("*")):
            path = file.relative_to(self.root)
            # What is measured here, and what runs share on this machine, whose facts hold seconds.
            apart = path.parts[:2] in {("reports", "runs"), ("data", "boundary_cache")}
            kept = path.parts[0] in {"data", "reports"} and not apart
            if file.is_file() and kept and path.name not in MEASURED:
                found[str(path)] = file.read_bytes()
        return found


def commands(methods: list[str]) -> list[list[str]]:
    """Every stage of the chain with its arguments, in order."""
    base, prepared = ("--base", "data/base"), ("--prepared", "data/prepared")
    law = ("--law", "reports/scaling_law.json", "--gains", "reports/gains.csv")
    finetunes = [
        [
            "finetune", *base, *prepared, "--plan", "data/plan/freeze_plan.json", "--method", method, "--seed", "1",
            "--out", f"data/models/{method}-seed1", "--measured", f"reports/runs/{method}-seed1.json",
        ]
        for method in methods
    ]  # fmt: skip
    return [
        ["base", "--out", "data/base"],
        ["prepare", *base, "--out", "data/prepared"],
        ["trace", *base, *prepared, "--out", "data/traces"],
        ["fit", "--traces", "data/traces", *law],
        ["signals", *base, *prepared, "--out", "reports/signals.csv", "--pilot", "reports/pilot.json"],
        ["plan", *base, *prepared, *law, "--signals", "reports/signals.csv", "--out", "data/plan"],
        *finetunes,
        [
            "evaluate", *base, *prepared, "--models", "data/models", "--measured", "reports/runs",
            "--metrics", "reports/metrics.json", "--comparison", "reports/comparison.csv",
            "--predictions", "reports/predictions.parquet", "--curves", "reports/curves.csv",
        ],
    ]  # fmt: skip


def new_chain(root: Path, hub_folder: Path, **changes: object) -> Chain:
    settings: dict[str, object] = {
        "data__limits": {"train": 120, "validation": 30, "test": 60},
        "trace__sample": 60,
        "trace__losses": 30,
        "fit__bootstrap": 20,
        "compare__methods": METHODS,
        "finetune__learning_rate": {
            "full": 0.003, "salf": [0.001, 0.01], "lora": 0.03, "salf+lora": 0.03, "none": 0.01
        },
        "finetune__epochs": 3,
        "evaluate__bootstrap": 50,
    }  # fmt: skip
    write_tiny_task(root, hub_folder, **{**settings, **changes})
    return Chain(root)


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    return new_chain(tmp_path_factory.mktemp("chain"), hub_folder).run(METHODS)


def test_the_base_folder_is_the_source_model(chain, hub_folder):
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        source = AutoModelForCausalLM.from_pretrained(hub_folder)(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(chain.root / "data/base")(ids).logits
    torch.testing.assert_close(ours, source, rtol=0, atol=0)
    text = "a wörd is"
    mine, theirs = (AutoTokenizer.from_pretrained(f) for f in (chain.root / "data/base", hub_folder))
    assert mine(text)["input_ids"] == theirs(text)["input_ids"]


def test_fine_tunes_of_weights_cost_what_the_plan_predicts_for_their_boundary(chain):
    frontier = chain.json("data/plan/freeze_plan.json")["frontier"]
    predicted = {point["boundary"]: point["flops"] for point in frontier}
    for method in ("full", "salf", "none", "freeze-1"):
        counted = chain.json(f"data/models/{method}-seed1/run.json")
        clock = chain.json(f"reports/runs/{method}-seed1.json")
        # Counted batch by batch while it trained, predicted from sums over the split.
        assert counted["flops"] == pytest.approx(predicted[counted["boundary"]], rel=0.02)
        frozen = clock["boundary_states"]["training"]["seconds_computing"] if counted["boundary"] else 0
        assert clock["seconds_cache"] == frozen


def test_the_trace_is_what_hugging_face_and_numpy_say(chain):
    """Hidden states by Hugging Face, bases by numpy's pinv, one example at a time."""
    network = AutoModelForCausalLM.from_pretrained(chain.root / "data/base", dtype=torch.float32).eval()
    examples = pd.read_parquet(chain.root / "data/prepared/train.parquet").set_index("example_id")
    trace = pq.read_table(chain.root / "data/traces").to_pylist()
    head = network.lm_head.weight.detach().double().numpy()
    inverse = np.linalg.pinv(head)
    assert len({row["example_id"] for row in trace}) == 60
    for row in trace[:25]:
        example = examples.loc[row["example_id"]]
        ids = [*example.prompt_ids, *example.answer_ids[:-1]]
        at = len(example.prompt_ids) - 1 + row["position"]
        token = row["token_id"]
        assert token == example.answer_ids[row["position"]]
        with torch.no_grad():
            spaces = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
            # Hugging Face has normed the last space already.
            normed = [network.model.norm(space[0, at]) for space in spaces[:-1]] + [spaces[-1][0, at]]
        states = torch.stack(normed).double().numpy()
        basis = inverse[:, token]
        deviation = 1 - states @ basis / np.linalg.norm(states, axis=1) / np.linalg.norm(basis)
        np.testing.assert_allclose(row["deviation"], deviation, atol=2e-5)
        if row["loss"] is not None:
            logits = states @ head.T
            loss = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[:, token]
            np.testing.assert_allclose(row["loss"], loss, rtol=1e-3, atol=1e-4)


def test_losses_are_traced_for_as_many_examples_as_asked(chain):
    trace = pd.read_parquet(chain.root / "data/traces")
    assert trace.dropna(subset="loss").example_id.nunique() == 30


@pytest.mark.parametrize("method", METHODS)
def test_frozen_shards_keep_their_hashes_and_trained_ones_do_not(chain, method):
    base, run = chain.json("data/base/base.json"), chain.json(f"data/models/{method}-seed1/run.json")
    same = {file for file, digest in run["shards"].items() if base["shards"][file] == digest}
    by_hand = {"freeze-1": 1, "lisa": 0}
    selected = chain.json("data/plan/freeze_plan.json")["boundaries"]
    boundary = by_hand[method] if method in by_hand else selected[method_of(method).scope]["boundary"]
    assert run["boundary"] == boundary
    # Of layers drawn at random only the record knows which those were; elsewhere the boundary tells.
    trained = run["trained_layers"] if method == "lisa" else range(boundary + 1, 5)
    frozen = {f"layer-{k:02d}.safetensors" for k in range(1, 5) if k not in trained}
    adapters = "lora" in method
    if adapters or boundary > 0:
        frozen.add("embedding.safetensors")
    if adapters:
        frozen.add("final.safetensors")
    assert same == frozen
    assert set(run["trained_units"]) == {file.removesuffix(".safetensors") for file in set(run["shards"]) - frozen}


@pytest.mark.parametrize("method", METHODS)
def test_the_model_folder_loads_and_answers_as_evaluated(chain, method):
    folder = chain.root / f"data/models/{method}-seed1"
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert network.lm_head.weight is network.model.embed_tokens.weight
    test = pd.read_parquet(chain.root / "data/prepared/test.parquet").set_index("example_id")
    said = pd.read_parquet(chain.root / "reports/predictions.parquet").query("run == @method + '-seed1'")
    words = {label["label"]: label["token_ids"] for label in chain.json("data/prepared/meta.json")["labels"]}
    for _, row in said.head(20).iterrows():
        with torch.no_grad():
            logits = network(torch.tensor([list(test.loc[row.example_id].prompt_ids)])).logits[0, -1]
        # The words begin with a blank of their own and differ in the letter after it: look behind the blank.
        with torch.no_grad():
            ids = [*test.loc[row.example_id].prompt_ids, words["warm"][0]]
            logits = network(torch.tensor([ids])).logits[0, -1]
        assert row.predicted == max(words, key=lambda label: float(logits[words[label][1]]))


def test_training_learns_the_task(chain):
    metrics = chain.json("reports/metrics.json")
    assert metrics["runs"]["full-seed1"]["accuracy"] > metrics["baselines"]["majority"]["accuracy_high"]
    for method in METHODS:
        curve = chain.json(f"data/models/{method}-seed1/run.json")["curve"]
        assert curve[-1]["validation_loss"] < curve[0]["validation_loss"]


def test_a_grid_of_rates_is_settled_on_the_validation_split(chain):
    run = chain.json("data/models/salf-seed1/run.json")
    best = min(run["grid"], key=lambda entry: entry["validation_loss"])
    assert len(run["grid"]) == 2
    assert run["learning_rate"] == best["rate"]
    assert run["curve"][-1]["validation_loss"] == best["validation_loss"]
    evaluated = chain.json("reports/metrics.json")["runs"]["salf-seed1"]  # by the same scorer
    assert (best["test_accuracy"], best["test_loss"]) == (
        evaluated["accuracy"],
        pytest.approx(evaluated["loss"], rel=1e-5),
    )


def test_methods_share_the_frozen_layers_states(chain):
    """Where their boundaries are the same."""
    states = {method: chain.json(f"reports/runs/{method}-seed1.json")["boundary_states"] for method in METHODS}
    assert (set(states["salf"]), set(states["none"])) == (
        {"training", "validation", "test"},
        {"training", "validation"},
    )
    for split in ("training", "validation"):
        assert (states["salf"][split]["origin"], states["salf"][split]["begun"]) == ("computed", 0)
        assert states["salf+lora"][split]["origin"] == "reused"
        assert states["salf+lora"][split]["seconds_computing"] > 0
        assert states["none"][split]["origin"] == "computed"
    assert states["full"] == states["lora"] == {}


@contextmanager
def changed(chain, setting, other):
    """One line of params.yaml changed for the block."""
    params = chain.root / "params.yaml"
    before = params.read_text(encoding="utf-8")
    assert setting in before
    params.write_text(before.replace(setting, other), encoding="utf-8")
    try:
        yield
    finally:
        params.write_text(before, encoding="utf-8")


def fine_tune(chain, option, name, out, measured):
    chain.stage(
        "finetune", "--base", "data/base", "--prepared", "data/prepared", "--plan", "data/plan/freeze_plan.json",
        option, name, "--seed", "1", "--out", out, "--measured", measured,
    )  # fmt: skip


def fine_tune_otherwise(chain, setting, other, method, folder):
    """One more fine-tune, into a folder of its own, with one line of params.yaml changed for it."""
    with changed(chain, setting, other):
        fine_tune(chain, "--method", method, f"{folder}/model", f"{folder}/measured.json")


def test_without_a_cache_a_fine_tune_costs_more_and_comes_to_the_same(chain):
    fine_tune_otherwise(chain, "  cache: auto", "  cache: off", "salf", "off")
    assert chain.json("off/measured.json")["boundary_states"]["training"]["origin"] == "off"
    kept, anew = chain.json("data/models/salf-seed1/run.json"), chain.json("off/model/run.json")
    assert anew["flops"] > kept["flops"]
    for mine, theirs in zip(anew["grid"], kept["grid"], strict=True):
        assert mine["rate"] == theirs["rate"]
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=1e-2)


def test_at_equal_compute_a_frozen_run_spends_what_it_saves_on_epochs(chain):
    fine_tune_otherwise(chain, "equal_compute: false", "equal_compute: true", "freeze-2", "equal")
    full, longer = chain.json("data/models/full-seed1/run.json"), chain.json("equal/model/run.json")
    assert (full["epochs"], longer["boundary"]) == (3, 2)
    an_epoch = (longer["flops"] - longer["curve"][0]["flops"]) / longer["epochs"]
    assert longer["flops"] <= full["flops"] < longer["flops"] + an_epoch
    assert longer["epochs"] > 3
    assert len(longer["curve"]) == len(full["curve"])
    assert longer["learning_rate"] in (0.001, 0.01)  # salf's, for want of its own
    card = (chain.root / "equal/model/README.md").read_text(encoding="utf-8")
    assert f"({longer['epochs']} epochs)" in card
    assert "Boundary: 2 (the last frozen layer" in card


def test_a_variant_is_compared_under_its_own_name(chain):
    made = chain.root / "data/models/lora-2-seed1", chain.root / "reports/runs/lora-2-seed1.json"
    with changed(chain, "variants: {}", "variants: {lora-2: {method: lora, lora_rank: 2}}"):
        fine_tune(chain, "--variant", "lora-2", *(str(path.relative_to(chain.root)) for path in made))
        record, plain = (FineTuneRecord.load(chain.root / f"data/models/{name}-seed1") for name in ("lora-2", "lora"))
        (chain.root / "variant").mkdir()
        *_, (_, *words) = commands([])
        kept = ("reports/runs",)
        chain.stage("evaluate", *(w if w in kept else w.replace("reports/", "variant/") for w in words))
    shutil.rmtree(made[0])
    made[1].unlink()
    assert (record.method, record.variant, record.params.finetune.lora_rank) == ("lora", "lora-2", 2)
    assert record.trained_parameters * 4 == plain.trained_parameters  # rank 8
    assert record.shards != plain.shards
    metrics = chain.json("variant/metrics.json")
    assert set(metrics["methods"]) == {*METHODS, "lora-2"}
    assert metrics["runs"]["lora-2-seed1"]["trained_parameters"] == record.trained_parameters
    comparison = pd.read_csv(chain.root / "variant/comparison.csv").set_index("name")
    assert comparison.loc["lora-2", "trained_share"] < comparison.loc["lora", "trained_share"]


def test_scores_are_those_of_the_predictions(chain):
    metrics = chain.json("reports/metrics.json")
    for run, said in pd.read_parquet(chain.root / "reports/predictions.parquet").groupby("run"):
        entry = metrics["runs"].get(run) or metrics["baselines"][run]
        assert entry["accuracy"] == pytest.approx((said.label == said.predicted).mean())
        assert entry["macro_f1"] == pytest.approx(f1_score(said.label, said.predicted, average="macro"))
        assert entry["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(said.label, said.predicted))
        assert entry["accuracy_low"] <= entry["accuracy"] <= entry["accuracy_high"]


def test_the_metrics_say_how_every_run_was_trained(chain):
    metrics = chain.json("reports/metrics.json")["runs"]
    for name, entry in metrics.items():
        run = chain.json(f"data/models/{name}/run.json")
        told = ("boundary", "flops", "flops_backward", "epochs", "steps", "learning_rate", "grid", "trained_parameters")
        assert {key: entry[key] for key in told} == {key: run[key] for key in told}
        last = run["curve"][-1]
        assert (entry["validation_loss"], entry["validation_accuracy"]) == (
            last["validation_loss"],
            last["validation_accuracy"],
        )


def test_costs_are_relative_to_full_fine_tuning(chain):
    methods = chain.json("reports/metrics.json")["methods"]
    assert methods["full"]["flops_share"] == 1
    assert methods["none"]["flops_share"] < methods["salf"]["flops_share"] < 1
    for entry in methods.values():
        assert entry["flops_backward_share"] == entry["flops_backward"] / methods["full"]["flops_backward"]
        assert 0 < entry["flops_backward"] < entry["flops"]
    assert methods["lora"]["flops_backward_share"] < methods["lora"]["flops_share"]
    assert methods["salf"]["at_equal_compute"]["full_validation_loss"] > 0
    assert methods["full"]["at_equal_compute"] is None
    comparison = pd.read_csv(chain.root / "reports/comparison.csv").set_index("name")
    shares = ["seconds_share", "seconds_per_step_share", "peak_memory_share", "trained_share", "flops_share"]
    shares.append("flops_backward_share")
    assert (comparison.loc["full", shares] == 1).all()
    assert (comparison.loc[METHODS, shares] > 0).all(axis=None)
    assert comparison.loc["lora", "trained_share"] < 0.5
    assert (comparison.loc[METHODS, "peak_memory_bytes"] > 0).all()


def test_the_model_card_and_the_plan_travel_with_the_model(chain):
    folder = chain.root / "data/models/salf-seed1"
    card = (folder / "README.md").read_text(encoding="utf-8")
    run = chain.json("data/models/salf-seed1/run.json")
    hashes = (run["base_sha256"], run["data_sha256"]["train"], run["plan_sha256"])
    for fact in (*hashes, "tiny-llama", "salf", "colours.csv", "    {text} is", "warm", torch.__version__):
        assert fact in card
    assert chain.json("data/models/salf-seed1/freeze_plan.json") == chain.json("data/plan/freeze_plan.json")


def test_a_repeated_run_gives_the_same_bytes(chain, tmp_path, hub_folder):
    again = new_chain(tmp_path, hub_folder).run(METHODS)
    ours, theirs = chain.bytes_of_all(), again.bytes_of_all()
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
