"""Small random models of the real architectures."""

from pathlib import Path

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


def tiny_network(model_type: str = "llama", *, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random network whose norms and biases are not at their defaults: ones and zeros hide bugs."""
    config = AutoConfig.for_model(model_type, **{**SIZES, **overrides})
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
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
