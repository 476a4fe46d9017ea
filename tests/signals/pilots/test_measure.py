"""A pilot is a fine-tune: held against torch's own training of the whole model on the same examples."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from salf.engine.batches import training_batches


def hugging_face_pilot(folder, boundary, size, seed, rate, rank):
    """The whole model with its lower layers frozen by hand, every example by itself, plain AdamW."""
    network = AutoModelForCausalLM.from_pretrained(folder / "data/base", dtype=torch.float32).eval()
    frozen = [network.model.embed_tokens, *network.model.layers[:boundary]] if boundary else []
    for part in frozen:
        part.requires_grad_(False)
    if rank:
        torch.manual_seed(seed)
        maps = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
        layers = list(range(boundary, len(network.model.layers)))
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=maps, layers_to_transform=layers)
        network = get_peft_model(network, config)
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    rows = list(pd.read_parquet(folder / "data/prepared/train.parquet").itertuples())
    drawn = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:size]]
    total, step = math.ceil(size / 8) * 2, 0
    warmup = round(total * 0.1)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        for index in training_batches([len(row.prompt_ids) + len(row.answer_ids) for row in drawn], 8, rng):
            sum(losses(network, drawn[i]).sum() for i in index).div(len_answers(drawn, index)).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            share = (
                (step + 1) / (warmup + 1)
                if step < warmup
                else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    validation = pd.read_parquet(folder / "data/prepared/validation.parquet").itertuples()
    with torch.no_grad():
        return float(np.mean([losses(network, row).mean().item() for row in validation]))


def losses(network, row):
    logits = network(torch.tensor([[*row.prompt_ids, *row.answer_ids]], dtype=torch.long)).logits[
        0, len(row.prompt_ids) - 1 : -1
    ]
    return torch.nn.functional.cross_entropy(
        logits, torch.tensor([*row.answer_ids], dtype=torch.long), reduction="none"
    )


def len_answers(rows, index):
    return sum(len(rows[i].answer_ids) for i in index)


@pytest.mark.parametrize(("method", "boundary"), [("weights", 0), ("weights", 2), ("lora", 2)])
def test_a_pilot_ends_where_plain_training_of_the_whole_model_ends(workspace, method, boundary):
    made = workspace.pilot(pilot__methods=[method], pilot__boundaries=[boundary / 4], pilot__sizes=[0.125, 0.25])
    for pilot in made["pilots"]:
        facts = pilot["examples"], 1, pilot["learning_rate"], pilot["rank"]
        expected = hugging_face_pilot(workspace.root, boundary, *facts)
        assert pilot["validation_loss"] == pytest.approx(expected, rel=1e-3)


def test_the_artifact_keeps_no_seconds_and_no_path(workspace):
    text = json.dumps(workspace.pilot(pilot__boundaries=[0.5], pilot__sizes=[0.125]))
    assert "seconds" not in text
    assert str(workspace.root) not in text
