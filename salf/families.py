"""Architectures as data: where each family keeps what the pipeline needs. No torch here.

A model type outside the table is found by its parameters' names (:func:`family_from_names`) and runs padded, by the
model's own masks. The tests run every row against Hugging Face's own hidden states, logits and gradients.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from salf.errors import UserError


@dataclass(frozen=True)
class Family:
    """Dotted paths inside a ``...ForCausalLM`` model.

    ``packed``: attention goes through transformers' interface and hides nothing but the future and what lies outside
    a window that it hands to the interface, so rows need no padding.
    """

    embedding: str
    layers: str  # the list of decoder layers, inside the trunk
    norm: str  # the final one
    head: str = "lm_head"
    inputs: tuple[str, ...] = ()  # what else makes space 0 (positions, a norm): frozen and stored with the embedding
    packed: bool = False

    @property
    def trunk(self) -> str:
        """The module that runs the embedding, the layers and the final norm."""
        return self.layers.rpartition(".")[0]

    def unit_of(self, parameter: str, layers: int) -> str:
        """The shard that a parameter belongs to: ``embedding``, ``layer-07`` or ``final``.

        Layers count from 1, as in the paper; numbers are padded so that names sort by depth.
        """
        if self.before_layers(parameter):
            return "embedding"
        if parameter.startswith(f"{self.layers}."):
            index = int(parameter.removeprefix(f"{self.layers}.").split(".", 1)[0])
            return layer_unit(index + 1, layers)
        return "final"

    def before_layers(self, parameter: str) -> bool:
        """Whether a parameter makes space 0."""
        return any(parameter.startswith(f"{part}.") for part in (self.embedding, *self.inputs))


def layer_unit(number: int, layers: int) -> str:
    """The shard of layer ``number``, from 1, of ``layers``: ``layer-07``."""
    return f"layer-{number:0{max(2, len(str(layers)))}d}"


_LLAMA: Final = Family(embedding="model.embed_tokens", layers="model.layers", norm="model.norm", packed=True)
_PHI: Final = Family(embedding="model.embed_tokens", layers="model.layers", norm="model.final_layernorm", packed=True)
_GPT2: Final = Family(
    embedding="transformer.wte",
    layers="transformer.h",
    norm="transformer.ln_f",
    inputs=("transformer.wpe",),
    packed=True,
)
_GPT_NEOX: Final = Family(
    embedding="gpt_neox.embed_in", layers="gpt_neox.layers", norm="gpt_neox.final_layer_norm", packed=True
)
_OPT: Final = Family(
    embedding="model.decoder.embed_tokens",
    layers="model.decoder.layers",
    norm="model.decoder.final_layer_norm",
    inputs=("model.decoder.embed_positions",),
    packed=True,
)
# BLOOM adds its linear biases, and Falcon its own rotary products, outside transformers' interface.
_BLOOM: Final = Family(
    embedding="transformer.word_embeddings",
    layers="transformer.h",
    norm="transformer.ln_f",
    inputs=("transformer.word_embeddings_layernorm",),
)
_FALCON: Final = Family(embedding="transformer.word_embeddings", layers="transformer.h", norm="transformer.ln_f")
_GPTJ: Final = Family(embedding="transformer.wte", layers="transformer.h", norm="transformer.ln_f")
# No attention at all: a recurrence over the sequence, which right-hand padding does not reach.
_MAMBA: Final = Family(embedding="backbone.embeddings", layers="backbone.layers", norm="backbone.norm_f")

_LLAMA_NAMED: Final = (
    *("bitnet", "cohere", "gemma", "gemma2", "gemma3_text", "granite", "granitemoe", "llama", "mistral", "mixtral"),
    *("olmo", "olmo2", "olmoe", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
)
FAMILIES: Final[dict[str, Family]] = {
    **dict.fromkeys(_LLAMA_NAMED, _LLAMA),
    "bloom": _BLOOM,
    "falcon": _FALCON,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "gptj": _GPTJ,
    "mamba": _MAMBA,
    "opt": _OPT,
    "phi": _PHI,
}


def family_of(model_type: str, names: Iterable[str] | None = None) -> Family:
    """The row of a model type; where there is none, what its parameters' names (``model.layers.0...``) tell."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if names is None:
        raise UserError(f"model type {model_type!r} is not in the table: {', '.join(sorted(FAMILIES))}")
    return family_from_names(model_type, names)


def family_from_names(model_type: str, names: Iterable[str]) -> Family:
    """Find the parts of an unknown architecture by transformers' conventions for names.

    The layers are the longest numbered list. Embeddings and final norm are in the same trunk and named so; the head
    is outside the trunk.
    """
    names = list(names)
    layers = longest_list(names)
    if "." not in layers:
        raise UserError(f"model type {model_type!r}: its list of decoder layers (trunk.layers.0...) was not found")
    trunk = f"{layers.rpartition('.')[0]}."
    parts: dict[str, list[str]] = {role: [] for role in ("embedding", "norm", "inputs", "head", "other")}
    for part in sorted({name.rpartition(".")[0] for name in names if not name.startswith(f"{layers}.")}):
        own = part.removeprefix(trunk)
        parts["head" if own == part else _role_of(own)].append(part)
    for role in ("embedding", "norm"):
        if not parts[role]:
            raise UserError(f"model type {model_type!r}: its {role} was not found by name")
    strange = [*parts["other"], *parts["embedding"][1:], *parts["norm"][1:], *parts["head"][1:]]
    if strange:
        raise UserError(f"model type {model_type!r}: what {', '.join(strange)} is for was not found out by name")
    head = (parts["head"] or ["lm_head"])[0]  # a tied one is not among the weights of a file
    return Family(parts["embedding"][0], layers, parts["norm"][0], head, inputs=tuple(parts["inputs"]))


def _role_of(part: str) -> str:
    """The role of a part of the trunk, by its name; an embedding's norm is no final norm."""
    roles = {"inputs": r"pos|wpe|emb\w*(norm|ln)", "embedding": r"emb|wte", "norm": r"norm|ln"}
    return next((role for role, words in roles.items() if re.search(words, part)), "other")


def longest_list(names: Iterable[str]) -> str:
    """The outermost numbered prefix with the most numbers: ``model.layers`` of ``model.layers.0.mlp...``."""
    members: dict[str, set[str]] = defaultdict(set)
    for name in names:
        match = re.match(r"(.+?)\.(\d+)\.", name)
        if match:
            members[match[1]].add(match[2])
    return max(members, key=lambda prefix: len(members[prefix]), default="")
