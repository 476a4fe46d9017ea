"""Free answers: greedy writing against a plain loop over the whole model."""

import pytest
import torch
from tokenizers import Tokenizer

from salf.engine.batches import Example, Split
from salf.engine.models.adapter import open_model
from stages.evaluate.predict import write_answers

LONGEST = 6
END = 1


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
    written = write_answers(model.network, tokenizer, Split(examples, 0), LONGEST, END, batch_tokens, done.append)
    eos = model.network.config.eos_token_id
    expected = [tokenizer.decode(greedy(model.network, prompt, eos), skip_special_tokens=True) for prompt in prompts]
    assert written == expected
    assert sum(done) == 3


def test_writing_stops_at_the_end_of_a_turn_and_at_the_models_own_end(model, hub_folder):
    """The end of a turn is another token than the model's configuration names."""
    tokenizer = Tokenizer.from_file(str(hub_folder / "tokenizer.json"))
    prompt = (10, 20, 30)
    freely = greedy(model.network, prompt, eos=None)
    end = freely[2]
    written = write_answers(
        model.network,
        tokenizer,
        Split([Example("a", None, "", "", prompt, (1,))], 0),
        LONGEST,
        end,
        100,
        lambda _: None,
    )
    stop = min(freely.index(token) for token in (end, model.network.config.eos_token_id) if token in freely)
    assert written == [tokenizer.decode(freely[: stop + 1], skip_special_tokens=True)]


def test_an_answer_never_leaves_the_models_context(model, hub_folder, monkeypatch):
    tokenizer = Tokenizer.from_file(str(hub_folder / "tokenizer.json"))
    monkeypatch.setattr(model.network.config, "max_position_embeddings", 5)
    asked = [Example("0", None, "", "", (10, 20, 30), (1,))]
    (written,) = write_answers(model.network, tokenizer, Split(asked, 0), LONGEST, END, 100, lambda _: None)
    two = greedy(model.network, [10, 20, 30], model.network.config.eos_token_id)[:2]
    assert written == tokenizer.decode(two, skip_special_tokens=True)
