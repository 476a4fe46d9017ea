"""Opens a model folder and finds its parts by the row of its family."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from stages.common.command import UserError
from stages.common.models.attention import PACKED
from stages.common.models.families import Family, family_of


@dataclass(frozen=True)
class CausalModel:
    """A causal LM taken apart: ``network`` is Hugging Face's model, the rest are its own modules."""

    network: PreTrainedModel
    family: Family

    def __post_init__(self) -> None:
        self.network.set_attn_implementation(PACKED)

    @cached_property
    def embedding(self) -> nn.Embedding:
        """Token embedding, weight [vocabulary, hidden]."""
        return self.network.get_submodule(self.family.embedding)

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The L decoder layers."""
        return self.network.get_submodule(self.family.layers)

    @cached_property
    def norm(self) -> nn.Module:
        """The final norm n(·), shared by every space when it is read as the head reads it."""
        return self.network.get_submodule(self.family.norm)

    @cached_property
    def head(self) -> nn.Linear:
        """The LM head, weight [vocabulary, hidden]."""
        return self.network.get_submodule(self.family.head)

    @cached_property
    def rotary(self) -> nn.Module:
        """Gives (cos, sin) for positions."""
        return self.network.get_submodule(self.family.rotary)

    @property
    def depth(self) -> int:
        """L, the number of decoder layers."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return self.embedding.weight.device

    @property
    def tied_head(self) -> bool:
        """Whether head and embedding are one tensor."""
        return self.head.weight is self.embedding.weight

    def logits(self, states: Tensor) -> Tensor:
        """Head of the final norm: raw states [N, hidden] of space L to logits [N, vocabulary]."""
        return self.head(self.norm(states))


def open_model(
    folder: Path | str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> CausalModel:
    """Open a Hugging Face folder (or hub name) for inference; nothing requires a gradient.

    Raises:
        UserError: the architecture is unknown, or the folder is no loadable model.
    """
    disable_progress_bar()  # ours tell of the long work; loading takes seconds
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        family = family_of(config.model_type)
        network = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, attn_implementation=PACKED, **options
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: cannot be opened as a causal language model: {reason[:400]}") from None
    network.requires_grad_(False)
    return CausalModel(network.eval().to(device), family)
