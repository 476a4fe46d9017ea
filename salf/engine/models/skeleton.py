"""A model's network without its weights: which parts there are, and what they are called."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig


def without_weights(config: PretrainedConfig, *, trust_remote_code: bool) -> nn.Module:
    """Build the network on torch's meta device, which holds shapes and no numbers.

    Args:
        config: as ``AutoConfig`` opened it.
        trust_remote_code: build it with code that the model's author shipped.

    Raises:
        ValueError: transformers has no causal language model for it.
    """
    with torch.device("meta"):
        network: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return network
