"""Free answers: greedy writing against a plain loop over the whole model."""

import pytest
import torch
from tokenizers import Tokenizer

from stages.common.batches import Example
from stages.common.models.adapter import open_model
from stages.evaluate.generate import write_answers

LONGEST = 6


@pytest.fixture(scope="module")
def model(hub_folder):
    return open_model(hub_folder, torch.device("cpu"))


def greedy(network, prompt, eos):
    ids = list(prompt)
    for _ in range(LONGEST):
        with torch.no_grad():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_tokens", [1, 1000])
def test_answers_are_those_of_a_plain_greedy_loop(model, hub_folder, batch_tokens):
    tokenizer = Tokenizer.from_file(str(hub_folder / "tokenizer.json"))
    prompts = [[10, 20, 30], [40, 50, 60], [70, 80, 90, 100, 110]]
    examples = [Example(str(i), None, "", "", tuple(prompt), (1,)) for i, prompt in enumerate(prompts)]
    done = []
    written = write_answers(model, tokenizer, examples, LONGEST, batch_tokens, done.append)
    eos = model.network.config.eos_token_id
    expected = [tokenizer.decode(greedy(model.network, prompt, eos), skip_special_tokens=True) for prompt in prompts]
    assert written == expected
    assert sum(done) == 3
