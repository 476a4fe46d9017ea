"""The forward pass against Hugging Face's own hidden states."""

import numpy as np
import pytest
import torch

from salf.engine.batches import Split
from salf.engine.models.adapter import open_model
from salf.errors import UserError
from stages.signals.sample import prompt_states
from tests.engine.models.tiny import save_tiny
from tests.signals.conftest import BEGINNING, RUNTIME, examples


def raw_spaces(model, ids):
    """Spaces 0..L of one prompt, [L+1, tokens, H]; the last of HF's own is normed already."""
    caught = []
    hook = model.norm.register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    with torch.no_grad():
        hidden = model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states
    hook.remove()
    return torch.stack([*[states[0] for states in hidden[:-1]], caught[0]]).double().numpy()


@pytest.mark.parametrize("beginning", [BEGINNING, ()], ids=["shared beginning", "none shared"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_states_and_cosines_are_hugging_faces(tmp_path, kind, beginning):
    model = open_model(save_tiny(tmp_path, kind), RUNTIME.device)
    rows = examples(9, beginning=beginning)
    found = prompt_states(model, RUNTIME, Split(rows, len(beginning)), batch_tokens=40)
    cosines = []
    for number, row in enumerate(rows):
        own = raw_spaces(model, list(row.prompt_ids))[:, len(beginning) :]  # of the prompt alone: no answer is read
        np.testing.assert_allclose(found.answer[:, number], own[:, -1], atol=2e-5)
        np.testing.assert_allclose(found.pooled[:, number], own.mean(axis=1), atol=2e-5)
        before, after = own[:-1], own[1:]
        norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
        cosines.append((before * after).sum(-1) / norms)
    np.testing.assert_allclose(found.cosines, np.concatenate(cosines, axis=1).mean(axis=1), atol=1e-6)


def test_a_state_that_is_not_a_number_is_one_line(model):
    with torch.no_grad():
        model.layers[2].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(UserError, match=r"a state of space 3 is not a number.*float32"):
        prompt_states(model, RUNTIME, Split(examples(4), len(BEGINNING)), batch_tokens=40)
