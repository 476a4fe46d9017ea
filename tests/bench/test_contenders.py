"""All contenders do the work that they are timed for."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from salf.engine.boundary_cache.prompts import cache_prompts
from salf.engine.training.workbench import CACHE_BATCH_TOKENS
from salf.families import family_of
from salf.parameters import trained_names
from salf.settings import Device
from salf.shape import ModelShape
from stages.bench import others, ours
from stages.bench.contender import contender
from stages.bench.others import HuggingFaceLora, HuggingFaceTrainer, PrefixTrainer, PromptTrainer, labelled, pad
from stages.bench.ours import AnswerLoraTuner, AnswerTuner, FineTuner, PromptReader, TraceMaker, product_rate
from tests.conftest import PROJECT


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(PROJECT)  # params.yaml


def weights(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def changed(before, network):
    return {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}


@pytest.mark.parametrize("boundary", [0, 2])
def test_ours_and_the_trainer_change_the_same_weights(task, boundary, monkeypatch):
    monkeypatch.setattr(ours, "RATE", 0.01)
    monkeypatch.setattr(others, "RATE", 0.01)
    found = {}
    for kind in (FineTuner, HuggingFaceTrainer):
        runner = kind(task)
        network = runner.model.network if kind is FineTuner else runner.network
        before = weights(network)
        lap = runner.run(boundary=boundary, epochs=2, examples=8)
        assert len(lap.seconds) == 2
        assert 0 < lap.seconds[0] < lap.seconds[1]
        found[kind] = changed(before, network)
    assert found[FineTuner] == found[HuggingFaceTrainer]
    names = [name for name in before if not name.startswith("lm_head")]
    expected = set(trained_names(names, family_of("llama"), boundary, tied_head=True))
    assert {name for name in found[FineTuner] if not name.startswith("lm_head")} == expected


@pytest.mark.parametrize("kind", [AnswerTuner, AnswerLoraTuner])
def test_answers_alone_change_all_layers_and_no_embedding_run_after_run(task, kind, monkeypatch):
    monkeypatch.setattr(ours, "RATE", 0.01)
    runner, whole = kind(task), FineTuner(task).run(boundary=0, epochs=1, examples=8)
    network = runner.model.network
    for _ in range(2):
        before = weights(network)
        lap = runner.run(boundary=0, epochs=1, examples=8)
        assert 0 < lap.flops[-1] < whole.flops[-1]
        found = changed(before, network)
        assert {name.split(".")[2] for name in found if ".layers." in name} == {"0", "1", "2", "3"}
        assert all("embed" not in name and "lm_head" not in name for name in found)


def test_the_least_time_has_rates_of_products_of_the_runs_own_sizes_and_of_memory(task, monkeypatch):
    """10 FLOP/s for whole passes, and a rate for steps that is their number of rows; a byte a second."""
    asked = []
    monkeypatch.setattr(ours, "memory_rate", lambda _: 1.0)
    monkeypatch.setattr(
        ours, "product_rate", lambda _, rows, gradients: asked.append((rows, gradients)) or (rows if gradients else 10)
    )
    examples = task.examples[:8]
    own = sum(len(example.inputs) for example in examples) - 8 * task.shared
    for kind, gradients in ((FineTuner, 2), (AnswerTuner, 2), (AnswerLoraTuner, 1)):
        asked.clear()
        runner = kind(task)
        trained = sum(part.numel() for part in runner.model.layers.parameters())
        lap = runner.run(boundary=0, epochs=2, examples=8)
        (rows, found), *before = asked
        assert found == gradients
        assert before == ([] if kind is FineTuner else [(CACHE_BATCH_TOKENS, 0)])
        per_epoch = np.diff(lap.flops)[0] / rows
        assert lap.least[1] - lap.least[0] > per_epoch  # the optimizer's traffic is the rest
        if kind is FineTuner:
            assert rows == round(own / 2) + task.shared
        else:
            assert rows < own / 2
        if kind is AnswerTuner:
            traffic = lap.least[1] - lap.least[0] - per_epoch
            assert traffic == pytest.approx(2 * 36 * (trained + runner.model.norm.weight.numel()))


@pytest.mark.parametrize("gradients", [0, 1, 2])
def test_a_rate_of_products_counts_what_pytorch_counts(gradients, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(ours, "now", lambda _: next(clock))  # every pass takes a second
    weights = [torch.ones(6, 4), torch.ones(4, 6), torch.ones(4, 4)]
    with FlopCounterMode(display=False) as counter:
        rate = product_rate(weights, rows=5, gradients=gradients, laps=3)
    assert rate == counter.get_total_flops() / 3


def test_prompts_are_read_as_whole_examples(task, monkeypatch):
    kept = []
    monkeypatch.setattr(ours, "cache_prompts", lambda *args: kept.append(cache_prompts(*args)))
    PromptReader(task).run(examples=8)
    assert len(kept[0].rows) == sum(len(example.inputs) for example in task.examples[:8])


@pytest.mark.parametrize(("kind", "boundary"), [(PrefixTrainer, 2), (PromptTrainer, 0)])
def test_the_clock_includes_what_fills_the_cache_and_the_prefixs_model_is_the_trainers(
    task, monkeypatch, kind, boundary
):
    monkeypatch.setattr(others, "RATE", 0.01)
    runner, plain = kind(task), HuggingFaceTrainer(task)
    monkeypatch.setattr(plain, "sampling", runner.sampling)
    before = weights(runner.network)
    filled = runner.cached
    monkeypatch.setattr(runner, "cached", lambda *args: time.sleep(2) or filled(*args))
    laps = [one.run(boundary=boundary, epochs=2, examples=8).seconds for one in (runner, plain)]
    assert [len(lap) for lap in laps] == [2, 2]
    assert laps[0][0] > 2
    if kind is PrefixTrainer:
        torch.testing.assert_close(weights(runner.network), weights(plain.network), rtol=1e-3, atol=1e-4)
    else:
        assert {name.split(".")[2] for name in changed(before, runner.network) if ".layers." in name} == set("0123")
        runner.run(boundary=boundary, epochs=1, examples=8)  # prompts are read by the base again


def test_a_second_run_above_another_boundary_is_not_hindered_by_the_first(task, monkeypatch):
    monkeypatch.setattr(ours, "RATE", 0.01)
    runner = FineTuner(task)
    first = runner.run(boundary=2, epochs=1, examples=8)
    before = weights(runner.model.network)
    second = runner.run(boundary=0, epochs=1, examples=8)
    assert set(changed(before, runner.model.network)) == set(before)
    assert second.flops[-1] > first.flops[-1]


def test_lora_trains_adapters_beside_all_linear_maps_of_all_layers(task):
    runner = HuggingFaceLora(task)
    runner.run(boundary=0, epochs=1, examples=8)
    trained = [parameter for parameter in runner.network.parameters() if parameter.requires_grad]
    config = AutoModelForCausalLM.from_pretrained(task.folder).config.to_dict()
    assert sum(p.numel() for p in trained) == ModelShape.from_config(config).lora_parameters(0, 8)


def test_the_labels_are_the_answers_alone(task):
    network = AutoModelForCausalLM.from_pretrained(task.folder)
    examples = task.examples[:5]
    batch = pad([labelled(example) for example in examples])
    with torch.no_grad():
        together = network(**batch).loss
        losses = []
        for example in examples:
            ids = torch.tensor([example.prompt_ids + example.answer_ids])
            logits = network(ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
            losses += [-logits[n, token] for n, token in enumerate(example.answer_ids)]
    assert float(together) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tracing_is_measured_on_the_gpu_where_there_is_one(task, tmp_path):
    here = replace(task, device=Device(kind="auto", dtype="auto"))
    with contender(TraceMaker, here, tmp_path / "log") as ask:
        lap = ask(examples=12)
    assert lap["device"] == torch.cuda.get_device_name()
    assert lap["peak_bytes"] > 0
    assert lap["seconds"][0] > 0
