"""What torchtune calls the parameters of models whose weights come from Hugging Face. No torch here.

The names are those of torchtune 0.6 (``torchtune/models/convert_weights.py`` and the models' own
``_convert_weights.py``), which its ``torchtune.modules.peft.set_trainable_params(model, names)`` takes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from salf.errors import UserError

_LLAMA: Final = {
    "model.embed_tokens": "tok_embeddings",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
    "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale",
    "model.norm.weight": "norm.scale",
    "lm_head": "output",
}
_GEMMA2: Final = {
    **_LLAMA,
    "post_attention_layernorm.weight": "sa_scale.scale",
    "pre_feedforward_layernorm.weight": "mlp_scale.scale",
    "post_feedforward_layernorm.weight": "mlp_norm.scale",
    "model.norm.weight": "norm.rms_norm.scale",
}
_RENAMED: Final[Mapping[str, Mapping[str, str]]] = {
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def torchtune_names(model_type: str, names: Iterable[str]) -> list[str]:
    """Rename parameters, in the order given.

    Raises:
        UserError: the architecture, or one of its parameters, is not in the table.
    """
    if model_type not in _RENAMED:
        known = ", ".join(_RENAMED)
        raise UserError(f"torchtune: its names for model type {model_type!r} are not known here; known: {known}")
    return [_renamed(name, _RENAMED[model_type]) for name in names]


def _renamed(name: str, table: Mapping[str, str]) -> str:
    layer, part = re.fullmatch(r"(?:model\.(layers\.\d+\.))?(.+)", name).groups(default="")  # type: ignore[union-attr]
    for theirs in (part, part.rpartition(".")[0]):
        if theirs in table:
            return f"{layer}{table[theirs]}{part.removeprefix(theirs)}"
    raise UserError(f"torchtune: parameter {name} has no name there")
