"""Small random models of the real architectures."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

# What a family calls otherwise, or has besides.
OWN_SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"head_dim": None},
    "falcon": {"head_dim": None, "alibi": False},
    "gpt_bigcode": {"head_dim": None},
    "gptj": {"head_dim": None, "rotary_dim": 8},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"state_size": 4, "head_dim": None},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def tiny_network(
    model_type: str = "llama", *, seed: int = 0, attention: str | None = None, **overrides: object
) -> PreTrainedModel:
    """A random network whose norms and biases are not at their defaults: ones and zeros hide bugs.

    Args:
        model_type: of ``config.json``.
        seed: of the weights; the same weights whatever the attention.
        attention: transformers' implementation; its own choice unless given.
        overrides: entries of the configuration.
    """
    sizes = {**SIZES, **OWN_SIZES.get(model_type, {}), **overrides}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in sizes.items() if value is not None})
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.15))
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return network


def save_tiny(folder: Path, model_type: str = "llama", **overrides: object) -> Path:
    """A random network as a folder in the hub's layout."""
    tiny_network(model_type, **overrides).save_pretrained(folder)
    return folder
