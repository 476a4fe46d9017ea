"""The walk against Hugging Face's own forward pass and gradients, for every family in the table.

The reference is a network of its own with the same weights and transformers' ``eager`` attention: it shares
no line of ours.
"""

import pytest
import torch

from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Packing
from salf.engine.models.walk import run, run_to_answers, walk, walk_beginning
from salf.families import FAMILIES, family_of
from tests.engine.models.tiny import tiny_network

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20, 21], [5, 6, 7, 30, 31, 32, 33, 34, 35]]
SHARED = 3


def open_tiny(model_type, **overrides):
    return CausalModel(tiny_network(model_type, **overrides), family_of(model_type))


def reference(model_type, **overrides):
    return tiny_network(model_type, attention="eager", **overrides)


def batch_of(shared):
    examples = [Example(str(i), None, "", "", tuple(p), (40 + i,)) for i, p in enumerate(PROMPTS)]
    return Batch.of(examples, range(len(examples)), shared)


def walk_all(model, shared, joined):
    """Every space at the answer positions, [L+1, M, hidden]."""
    batch = batch_of(shared)
    start = Embeddings.after(model, PROMPTS[0][:shared])
    if joined:
        packing = Packing.of(batch.lengths, model.device, past=shared)
        answers = shared + batch.answers
    else:
        packing = Packing.of(
            batch.lengths, model.device, walked=walk_beginning(model, start.beginning(), 0, model.depth)
        )
        answers = batch.answers
    states = start.states(batch, joined=joined)
    return torch.stack([space[answers] for space in [states, *walk(model, states, 0, model.depth, packing)]])


@pytest.mark.parametrize(
    ("shared", "joined"),
    [(0, False), (SHARED, False), (SHARED, True)],
    ids=["alone", "behind a walked beginning", "joined to the beginning"],
)
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_space_and_the_logits_are_hugging_faces_own(model_type, shared, joined):
    model, theirs = open_tiny(model_type), reference(model_type)
    with torch.no_grad():
        ours = walk_all(model, shared, joined)
        for row, prompt in enumerate(PROMPTS):
            said = theirs(torch.tensor([prompt]), output_hidden_states=True)
            # Mamba's hidden states start at space 1.
            spaces = [None, *said.hidden_states] if model_type == "mamba" else said.hidden_states
            for space in range(model.depth):
                if spaces[space] is not None:
                    torch.testing.assert_close(ours[space, row], spaces[space][0, -1], rtol=1e-4, atol=1e-5)
            # Hugging Face's last hidden state is already normed; the others are not.
            torch.testing.assert_close(model.norm(ours[-1, row]), spaces[-1][0, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.logits(ours[-1])[row], said.logits[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boundary", [2, 4])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_prefix_and_the_suffix_behind_it_say_what_the_whole_model_says(model_type, boundary):
    model, theirs, batch = open_tiny(model_type), reference(model_type), batch_of(0)
    packing = Packing.of(batch.lengths, model.device)
    with torch.no_grad():
        kept = run(model, Embeddings.after(model, []).states(batch), 0, boundary, packing)
        ours = model.logits(run_to_answers(model, kept, boundary, packing, batch.answers))
        for row, prompt in enumerate(PROMPTS):
            said = theirs(torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(ours[row], said, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [0, 3, 4])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("shared", [0, SHARED])
def test_the_last_layer_at_answers_alone_is_the_last_layer_of_all_rows(shared, window, first):
    options = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0} if window else {}
    model = open_tiny("qwen2", **options)
    answers = [(40, 41, 42), (43,), (44, 45)]
    examples = [Example("", None, "", "", tuple(p), a) for p, a in zip(PROMPTS, answers, strict=True)]
    batch = Batch.of(examples, [2, 0, 1], shared)
    packing = Packing.of(batch.lengths, model.device, past=shared)
    with torch.no_grad():
        states = Embeddings.after(model, PROMPTS[0][:shared]).states(batch, joined=True)
        states = run(model, states, 0, first, packing)
        whole = run(model, states, first, model.depth, packing)[shared + batch.answers]
        ours = run_to_answers(model, states, first, packing, batch.answers)
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)


def test_sequences_of_one_length_need_no_padding_and_agree_with_those_that_do():
    model = open_tiny("llama")
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]])
    with torch.no_grad():
        short = Packing.of([4, 4], model.device)
        together = run(model, model.embed(tokens.flatten(), short.position_ids()[0]), 0, 4, short)
        ids = torch.cat([tokens.flatten(), torch.arange(20, 26)])
        longer = Packing.of([4, 4, 6], model.device)
        padded = run(model, model.embed(ids, longer.position_ids()[0]), 0, 4, longer)
    torch.testing.assert_close(padded[:8], together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "falcon", "mamba"])
def test_a_walk_goes_on_from_the_middle_behind_a_walked_beginning(model_type):
    model, batch = open_tiny(model_type), batch_of(SHARED)
    start = Embeddings.after(model, PROMPTS[0][:SHARED])
    with torch.no_grad():
        packing = Packing.of(batch.lengths, model.device, walked=walk_beginning(model, start.beginning(), 0, 4))
        whole = run(model, start.states(batch), 0, 4, packing)
        middle = run(model, start.states(batch), 0, 3, packing)
        answers = run_to_answers(model, middle, 3, packing, batch.answers)
        torch.testing.assert_close(run(model, middle, 3, 4, packing), whole)
    torch.testing.assert_close(answers, whole[batch.answers], rtol=1e-4, atol=1e-5)


def compare_gradients(model_type, boundary, *, kept=False, **overrides):
    """Each example with its own copy of the beginning, through Hugging Face's forward, is the reference.

    ``kept``: the pass begins at states of the boundary that were computed before, as training above one does.
    """
    model, theirs = open_tiny(model_type, **overrides), reference(model_type, **overrides)
    names = [name for name, _ in theirs.named_parameters() if trains(name, model, boundary)]
    for network in (model.network, theirs):
        network.requires_grad_(False)
        for name in names:
            network.get_parameter(name).requires_grad_(True)

    batch = batch_of(SHARED)
    start = Embeddings.after(model, PROMPTS[0][:SHARED])
    if kept:
        packing = Packing.of(batch.lengths, model.device, past=SHARED)
        with torch.no_grad():
            states = run(model, start.states(batch, joined=True), 0, boundary, packing)
        logits = model.logits(run_to_answers(model, states, boundary, packing, batch.answers))
    else:
        logits = training_logits(model, start, batch)
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    logits = torch.stack([theirs(torch.tensor([p])).logits[0, -1] for p in PROMPTS])
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    for name, parameter in model.network.named_parameters():
        gradient = theirs.get_parameter(name).grad
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            torch.testing.assert_close(
                parameter.grad, gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def trains(name, model, boundary):
    """Layers above the boundary and the final norm; the rest at boundary 0 alone, an untied head always."""
    if name.startswith(f"{model.family.layers}."):
        return int(name.removeprefix(f"{model.family.layers}.").split(".")[0]) >= boundary
    return boundary == 0 or not model.family.before_layers(name)


@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_gradients_behind_a_shared_beginning_are_those_of_the_whole_model(model_type, boundary):
    compare_gradients(model_type, boundary)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_gradients_behind_kept_states_are_those_of_the_whole_model_with_frozen_layers(model_type):
    compare_gradients(model_type, 2, kept=True)


@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.parametrize(
    ("model_type", "tied"), [("llama", True), ("gpt2", False), ("gpt_neox", True), ("falcon", False)]
)
def test_gradients_are_right_whether_the_head_is_tied_or_not(model_type, tied, boundary):
    compare_gradients(model_type, boundary, tie_word_embeddings=tied)
