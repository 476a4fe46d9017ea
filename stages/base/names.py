"""What a network calls its parameters once it is loaded: not always what its files call them."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM


def parameter_names(network: nn.Module) -> tuple[str, ...]:
    """As ``named_parameters()`` gives them, sorted; a tied head has none of its own."""
    return tuple(sorted(name for name, _ in network.named_parameters()))


def loaded_names(config: Any, *, trust_remote_code: bool) -> tuple[str, ...]:
    """The same of a network that is not loaded: built without weights.

    transformers joins weights that files hold apart (a mixture's experts), so the files do not tell.

    Args:
        config: as ``AutoConfig`` opened it.
        trust_remote_code: build it with code that the model's author shipped.

    Raises:
        ValueError: transformers has no causal language model for it.
    """
    with torch.device("meta"):
        return parameter_names(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
