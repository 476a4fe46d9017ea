"""Random tasks are what their shape says, and always the same."""

import math

import pytest
from transformers import AutoModelForCausalLM

from salf.errors import UserError
from stages.bench.workloads import OWN, SHAPES, random_examples, task_of
from tests.bench.conftest import CPU, SHAPE


def test_examples_share_their_beginning_and_nothing_else():
    examples = random_examples(200, SHAPE, seed=0)
    prompts = [example.prompt_ids for example in examples]
    assert len({prompt[: SHAPE.shared] for prompt in prompts}) == 1
    assert len({prompt[SHAPE.shared] for prompt in prompts}) > 50
    own = [len(example.inputs) - SHAPE.shared for example in examples]
    assert (min(own), max(own)) == SHAPE.own
    assert {len(example.answer_ids) for example in examples} == {1, 2, 3}
    assert max(token for example in examples for token in example.inputs) < SHAPE.config["vocab_size"]


def test_examples_are_the_same_every_time_and_a_longer_list_begins_alike():
    assert random_examples(20, SHAPE, seed=0) == random_examples(40, SHAPE, seed=0)[:20]
    assert random_examples(20, SHAPE, seed=0) != random_examples(20, SHAPE, seed=1)


def test_the_description_counts_what_transformers_counts(task):
    described = task.described(8)
    network = AutoModelForCausalLM.from_pretrained(task.folder)
    assert described["parameters"] == network.num_parameters()
    lengths = [len(e.prompt_ids) + len(e.answer_ids) - 1 for e in task.examples[:8]]
    assert math.isclose(described["mean_tokens"], sum(lengths) / 8)
    assert (described["layers"], described["hidden"], described["vocabulary"]) == (4, 32, 97)


@pytest.mark.parametrize(("name", "millions"), [("smollm2-135m", 134.5), ("llama-1b", 1235.8)])
def test_published_configurations_have_their_published_size(name, millions):
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[name].config))
    assert network.num_parameters() / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_projects_own_task_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/base/base\.json: no such file or folder; it is made by: dvc repro base"):
        task_of(OWN, tmp_path, 8, CPU)
