"""The cached prefix and the suffix against the whole model with frozen layers, for every family in the table."""

from functools import partial

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from salf.engine import prefix
from salf.engine.prefix import PrefixStates, collate_states, prefix_states
from salf.engine.suffix import suffix
from salf.errors import UserError
from salf.families import FAMILIES
from salf.plan import FreezePlan
from tests.engine.models.tiny import tiny_network

BOUNDARY = 2
LENGTHS = (7, 5, 9, 4)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32


def rows():
    """Examples that begin alike; the first two tokens are no labels."""
    tokens = [[3, 4, 5, *range(10 + 5 * n, 7 + 5 * n + length)] for n, length in enumerate(LENGTHS)]
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in tokens]


def whole_batch(side):
    """The rows as a collator of transformers pads them, with the positions that tokens have in their rows."""
    padded = {}
    for name, value in (("input_ids", 0), ("labels", -100)):
        parts = [torch.tensor(row[name]) for row in rows()]
        padded[name] = torch.nn.utils.rnn.pad_sequence(parts, True, value, padding_side=side)
    mask = padded["attention_mask"] = (padded["input_ids"] != 0).long()
    return padded, (mask.cumsum(1) - 1).clamp(min=0)


def frozen_whole(model_type, **overrides):
    """The whole model, layers 1 and 2 and the embeddings frozen by hand."""
    network = tiny_network(model_type, **overrides)
    family = FAMILIES[model_type]
    for name, parameter in network.named_parameters():
        layer = name.removeprefix(f"{family.layers}.").split(".")[0] if name.startswith(f"{family.layers}.") else None
        above = int(layer) >= BOUNDARY if layer else not family.before_layers(name)
        parameter.requires_grad_(above)
    return network


def train_once(network, **batch):
    """One step of AdamW; returns logits, loss and gradients."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    output = network(**batch)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    torch.optim.AdamW(trained.values(), lr=1e-2, eps=1e-4).step()
    return output.logits.detach(), output.loss.detach(), gradients


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_step_on_cached_states_is_the_whole_models(model_type, side):
    whole, model = frozen_whole(model_type), tiny_network(model_type)
    batch, positions = whole_batch(side)
    mask = batch["attention_mask"].bool()
    placed = {"position_ids": positions} if side == "left" and model_type not in ("bloom", "mamba") else {}
    states = prefix_states(model, rows(), BOUNDARY)
    ours = train_once(suffix(model, BOUNDARY), **collate_states(list(states), padding_side=side))
    theirs = train_once(whole, **batch, **placed)
    torch.testing.assert_close(ours[0][mask], theirs[0][mask], **TOLERANCE)
    torch.testing.assert_close(ours[1:], theirs[1:], **TOLERANCE)
    for (name, mine), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
