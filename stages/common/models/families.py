"""Architectures as data: where each family keeps what the pipeline needs. No torch here.

A new architecture whose decoder layers follow transformers' own conventions is one more row; the
tests run every row against Hugging Face's own hidden states and logits.
"""

from dataclasses import dataclass
from typing import Final

from stages.common.command import UserError


@dataclass(frozen=True)
class Family:
    """Dotted paths inside a ``...ForCausalLM`` model."""

    embedding: str
    layers: str
    norm: str
    head: str
    rotary: str

    def unit_of(self, parameter: str, layers: int) -> str:
        """The shard that a parameter belongs to: ``embedding``, ``layer-07`` or ``final``.

        Layers count from 1, as in the paper; numbers are padded so that names sort by depth.
        """
        if parameter.startswith(f"{self.embedding}."):
            return "embedding"
        if parameter.startswith(f"{self.layers}."):
            index = int(parameter.removeprefix(f"{self.layers}.").split(".", 1)[0])
            return f"layer-{index + 1:0{max(2, len(str(layers)))}d}"
        return "final"


_LLAMA = Family(
    embedding="model.embed_tokens",
    layers="model.layers",
    norm="model.norm",
    head="lm_head",
    rotary="model.rotary_emb",
)

FAMILIES: Final[dict[str, Family]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "bitnet": _LLAMA,
}


def family_of(model_type: str) -> Family:
    """The row of an architecture.

    Raises:
        UserError: there is none; names those there are.
    """
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"model type {model_type!r} is not supported yet; supported: {known}")
    return FAMILIES[model_type]
