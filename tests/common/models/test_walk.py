"""The walk against Hugging Face's own forward pass and gradients, for every family in the table."""

import pytest
import torch

from stages.common.batches import Batch, Example
from stages.common.models.adapter import CausalModel
from stages.common.models.families import FAMILIES, family_of
from stages.common.models.walk import embed, run, walk, walk_beginning
from tests.common.models.tiny import tiny_network

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20, 21], [5, 6, 7, 30, 31, 32, 33, 34, 35]]
SHARED = 3


def open_tiny(model_type, **overrides):
    return CausalModel(tiny_network(model_type, **overrides), family_of(model_type))


def batch_of(shared):
    examples = [Example(str(i), None, "", "", tuple(p), (40 + i,)) for i, p in enumerate(PROMPTS)]
    return Batch.of(examples, range(len(examples)), shared)


def walk_all(model, shared):
    """Every space at the answer positions, [L+1, N, hidden]."""
    batch = batch_of(shared)
    beginning = (
        walk_beginning(model, embed(model, torch.tensor([PROMPTS[0][:shared]])), 0, model.depth) if shared else None
    )
    states = embed(model, batch.ids)
    spaces = [states, *walk(model, states, 0, model.depth, beginning)]
    return torch.stack([batch.answer_states(space) for space in spaces])


@pytest.mark.parametrize("shared", [0, SHARED], ids=["alone", "behind a shared beginning"])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_space_and_the_logits_are_hugging_faces_own(model_type, shared):
    model = open_tiny(model_type)
    with torch.no_grad():
        ours = walk_all(model, shared)
        for row, prompt in enumerate(PROMPTS):
            theirs = model.network(torch.tensor([prompt]), output_hidden_states=True)
            for space in range(model.depth):
                torch.testing.assert_close(ours[space, row], theirs.hidden_states[space][0, -1], rtol=1e-4, atol=1e-5)
            # Hugging Face's last hidden state is already normed; the others are not.
            torch.testing.assert_close(model.norm(ours[-1, row]), theirs.hidden_states[-1][0, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.logits(ours[-1])[row], theirs.logits[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boundary", [0, 2, 4])
def test_prefix_and_suffix_make_the_whole(boundary):
    model = open_tiny("llama")
    batch = batch_of(0)
    with torch.no_grad():
        states = embed(model, batch.ids)
        whole = run(model, states, 0, model.depth)
        halves = run(model, run(model, states, 0, boundary), boundary, model.depth)
    torch.testing.assert_close(halves, whole)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("boundary", [0, 2])
def test_gradients_behind_a_shared_beginning_are_those_of_the_whole_model(boundary, tied):
    """Each example with its own copy of the beginning, through Hugging Face's forward, is the reference."""
    model = open_tiny("llama", tie_word_embeddings=tied)
    trained = list(model.layers[boundary:].parameters()) + ([model.embedding.weight] if boundary == 0 else [])
    for parameter in trained:
        parameter.requires_grad_(True)

    batch = batch_of(SHARED)
    shared = embed(model, torch.tensor([PROMPTS[0][:SHARED]]))
    prefix = walk_beginning(model, shared, 0, boundary)
    states = run(model, embed(model, batch.ids), 0, boundary, prefix)
    suffix = walk_beginning(model, prefix.states[-1], boundary, model.depth)
    answers = batch.answer_states(run(model, states, boundary, model.depth, suffix))
    torch.nn.functional.cross_entropy(model.logits(answers), batch.targets).backward()
    ours = [parameter.grad.clone() for parameter in trained]

    model.network.zero_grad()
    logits = torch.stack([model.network(torch.tensor([p])).logits[0, -1] for p in PROMPTS])
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    for our, parameter in zip(ours, trained, strict=True):
        torch.testing.assert_close(our, parameter.grad, rtol=1e-4, atol=1e-6)
