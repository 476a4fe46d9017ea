"""lm-eval itself on a local task: its scores are ours, and what was forgotten is a paired difference."""

import json
import shutil

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from salf.engine.answers import Reader
from salf.engine.batches import Candidate, Example, Split
from salf.engine.models.adapter import open_model
from salf.engine.rules import CandidateRule
from salf.engine.runtime import choose_runtime
from salf.errors import UserError
from salf.settings import Device
from stages.evaluate.harness import main
from tests.conftest import write_params

pytestmark = pytest.mark.slow  # lm-eval alone takes ten seconds to load
pytest.importorskip("lm_eval", reason="needs lm-eval, an extra of its own")

ANIMALS = ["cat", "dog", "owl", "eel", "ant", "horse"]
ROWS = [
    {
        "question": f"number {n} is a",
        "choices": [f"{ANIMALS[(n + at) % 6]}{' indeed' * (at % 2)}" for at in range(3)],
        "answer": n % 3,
    }
    for n in range(24)
]


@pytest.fixture(scope="module")
def project(tmp_path_factory, hub_folder):
    """A base, a model whose last layers differ, a task of one's own, and the results."""
    root = tmp_path_factory.mktemp("harness")
    write_params(root, device__kind="cpu", device__dtype="float32")
    shutil.copytree(hub_folder, root / "base")
    shutil.copytree(hub_folder, root / "tuned")
    network = open_model(root / "tuned", torch.device("cpu")).network
    with torch.no_grad():
        for parameter in network.model.layers[2:].parameters():
            parameter.mul_(1.5)
    network.save_pretrained(root / "tuned")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "tasks").mkdir()
    task = {
        "task": "animals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(root / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    with (root / "tasks" / "animals.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(task, file)
    return root


def run(project, monkeypatch, tasks=("animals",), models=("tuned",)):
    monkeypatch.chdir(project)
    folders = ["--base", "base", "--models", *models]
    main([*folders, "--tasks", *tasks, "--include", "tasks", "--out", "harness.json"])
    return json.loads((project / "harness.json").read_text())


def ours(folder, score):
    """Right or wrong by example, as the evaluation of this project scores candidates."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    runtime = choose_runtime(Device(kind="cpu", dtype="float32"))
    examples = []
    for row in ROWS:
        prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:").ids
        candidates = tuple(Candidate(text, tuple(tokenizer.encode(f" {text}").ids)) for text in row["choices"])
        right = candidates[row["answer"]]
        examples.append(Example("", None, "", right.text, tuple(prompt), right.ids, candidates))
    reader = Reader(open_model(folder, runtime.device), runtime, CandidateRule(score), 256)
    return np.array([answer.correct for answer in reader.read(Split(examples, 0))], float)


def test_scores_are_those_of_our_own_evaluation(project, monkeypatch):
    models = run(project, monkeypatch)["models"]
    for metric, score in (("acc", "sum"), ("acc_norm", "character")):
        before, after = ours(project / "base", score), ours(project / "tuned", score)
        assert models["base"]["tasks"]["animals"][metric]["value"] == pytest.approx(before.mean())
        told = models["tuned"]["tasks"]["animals"][metric]
        assert told["value"] == pytest.approx(after.mean())
        assert told["minus_base"] == pytest.approx((after - before).mean())
        expected = (after - before).std(ddof=1) / np.sqrt(len(ROWS))
        assert told["minus_base_standard_error"] == pytest.approx(expected)
    assert models["base"]["weights_sha256"] != models["tuned"]["weights_sha256"]


def test_a_model_without_one_of_its_weights_has_no_scores(project, monkeypatch):
    tensors = load_file(project / "tuned" / "model.safetensors")
    shutil.copytree(project / "tuned", project / "lost")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, project / "lost" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lost: 1 weights are missing .*layers\.2\.mlp\.up_proj\.weight"):
        run(project, monkeypatch, ["animals"], ["lost"])


def test_two_models_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    for folder in ("base", "a/tuned", "b/tuned"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="b/tuned: another model is called tuned too"):
        main(["--base", "base", "--models", "a/tuned", "b/tuned", "--tasks", "any", "--out", "harness.json"])


def test_an_answer_side_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    for folder in ("base", "tuned"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tuned/answer_side.json").write_text("{}")
    with pytest.raises(UserError, match="tuned: an answer-side model; lm-eval does not say where a prompt ends"):
        main(["--base", "base", "--models", "tuned", "--tasks", "any", "--out", "harness.json"])


def test_an_unknown_task_is_named(project, monkeypatch):
    with pytest.raises(UserError, match="no task plants"):
        run(project, monkeypatch, ["animals", "plants"])


def test_a_task_whose_data_are_missing_is_one_line(project, monkeypatch):
    text = (project / "tasks" / "animals.yaml").read_text()
    lost = text.replace("rows.jsonl", "lost.jsonl").replace("task: animals", "task: lost")
    (project / "tasks" / "lost.yaml").write_text(lost)
    with pytest.raises(UserError, match="lm-eval cannot run lost") as caught:
        run(project, monkeypatch, ["lost"])
    assert "\n" not in str(caught.value)
