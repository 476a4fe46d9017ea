"""What a reader says of examples, against Hugging Face's own logits."""

import numpy as np
import pytest
import torch

from salf.engine.answers import Embeddings, Reader
from salf.engine.batches import Candidate, Example, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.rules import CandidateRule, LabelTree, rule_of
from salf.engine.runtime import choose_runtime
from salf.families import family_of
from salf.records import PreparedLabel, PreparedRecord
from salf.settings import Device
from tests.engine.models.tiny import tiny_network

WORDS = {"a": [50], "b": [60, 61], "c": [60, 62], "d": [70, 1]}
PROMPTS = [[5, 6, 7, *range(10, 10 + n)] for n in (1, 4, 2, 9, 5)]
SHARED = 3


@pytest.fixture(scope="module")
def model():
    return CausalModel(tiny_network(), family_of("llama"))


@pytest.fixture(scope="module")
def examples():
    labels = list(WORDS)
    return [
        Example(str(i), labels[i % 4], "", "", tuple(prompt), tuple(WORDS[labels[i % 4]]))
        for i, prompt in enumerate(PROMPTS)
    ]


def log_probabilities(model, ids):
    with torch.no_grad():
        return model.network(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.fixture(scope="module")
def answers(model, examples):
    reader = Reader(model, choose_runtime(Device(kind="cpu", dtype="float32")), LabelTree.of(WORDS), batch_tokens=20)
    return reader.read(Split(examples, SHARED))


def test_losses_are_those_of_the_whole_model(model, examples, answers):
    for example, answer in zip(examples, answers, strict=True):
        said = log_probabilities(model, [*example.prompt_ids, *example.answer_ids])
        first = len(example.prompt_ids) - 1
        expected = [-float(said[first + j, token]) for j, token in enumerate(example.answer_ids)]
        assert answer.token_losses == pytest.approx(expected, rel=1e-4)
        assert answer.loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_labels_are_those_of_brute_force(model, examples, answers):
    for example, answer in zip(examples, answers, strict=True):
        root = log_probabilities(model, list(example.prompt_ids))[-1]
        behind = log_probabilities(model, [*example.prompt_ids, 60])[-1]
        scores = {"a": root[50], "b": root[60] + behind[61], "c": root[60] + behind[62], "d": root[70]}
        best = max(scores, key=lambda label: float(scores[label]))
        assert answer.predicted == best
        assert answer.probability == pytest.approx(float(scores[best].exp()), rel=1e-3)


def prepared(words, **facts):
    labels = [PreparedLabel(label=label, word="", token_ids=list(ids)) for label, ids in words.items()]
    return PreparedRecord.model_construct(labels=labels, **{"end_token_id": None, "choice_score": None, **facts})


def test_labels_of_which_one_begins_another_are_those_of_brute_force(model):
    """As meta.json has them: every word with the end token, all of it scored."""
    words = {"1": (50, 2), "10": (50, 51, 2), "100": (50, 51, 51, 2), "2": (52, 2)}
    rule = rule_of(prepared(words, end_token_id=2))
    asked = [Example(str(n), label, "", "", tuple(PROMPTS[n]), words[label]) for n, label in enumerate(words)]
    reader = Reader(model, choose_runtime(Device(kind="cpu", dtype="float32")), rule, batch_tokens=20)
    for example, answer in zip(asked, reader.read(Split(asked, SHARED)), strict=True):
        scores = {}
        for label, ids in words.items():
            said, first = log_probabilities(model, [*example.prompt_ids, *ids]), len(example.prompt_ids) - 1
            scores[label] = sum(float(said[first + at, token]) for at, token in enumerate(ids))
        best = max(scores, key=scores.__getitem__)
        assert (answer.predicted, answer.correct) == (best, best == example.label)
        assert answer.probability == pytest.approx(np.exp(scores[best]), rel=1e-3)
        assert answer.loss == pytest.approx(-scores[example.label] / len(words[example.label]), rel=1e-4)


def test_the_start_makes_no_difference(model, examples):
    """From the embeddings, with or without sharing the beginning."""
    runtime = choose_runtime(Device(kind="cpu", dtype="float32"))
    reader = Reader(model, runtime, None, batch_tokens=64)
    shared = reader.read(Split(examples, SHARED))
    alone = reader.read(Split(examples, 0, Embeddings.after(model, [])))
    assert [a.loss for a in shared] == pytest.approx([a.loss for a in alone], rel=1e-5)


CHOICES = [("one", (50,)), ("of several", (60, 61, 62)), ("another", (60, 63)), ("last one of all", (70, 71, 72, 73))]


@pytest.fixture(scope="module")
def questions():
    made = []
    for n, prompt in enumerate(PROMPTS):
        candidates = tuple(Candidate(text, ids) for text, ids in CHOICES[: 2 + n % 3])
        right = candidates[n % len(candidates)]
        made.append(Example(str(n), None, "", right.text, tuple(prompt), right.ids, candidates))
    return made


@pytest.mark.parametrize(
    ("score", "length"),
    [("sum", lambda _: 1), ("token", lambda one: len(one.ids)), ("character", lambda o: len(o.text))],
)
def test_candidates_are_compared_by_their_whole_probability(model, questions, score, length):
    """Against Hugging Face's logits over every prompt and candidate, one by one."""
    reader = Reader(model, choose_runtime(Device(kind="cpu", dtype="float32")), CandidateRule(score), batch_tokens=20)
    for example, answer in zip(questions, reader.read(Split(questions, SHARED)), strict=True):
        scores = []
        for one in example.candidates:
            said = log_probabilities(model, [*example.prompt_ids, *one.ids])
            first = len(example.prompt_ids) - 1
            nats = sum(float(said[first + at, token]) for at, token in enumerate(one.ids))
            scores.append(nats / length(one))
            if one.text == example.answer:
                assert answer.loss == pytest.approx(-nats / len(one.ids), rel=1e-4)
        best = max(range(len(scores)), key=scores.__getitem__)
        assert answer.predicted == example.candidates[best].text
        assert answer.correct == (answer.predicted == example.answer)
        assert answer.probability == pytest.approx(float(torch.tensor(scores).softmax(0).max()), rel=1e-3)


def test_the_rule_follows_from_the_data():
    assert isinstance(rule_of(prepared({"a": [1], "b": [2]})), LabelTree)
    assert rule_of(prepared({}, choice_score="sum")) == CandidateRule("sum")
    assert rule_of(prepared({})) is None
