"""Translate a freeze plan for other tools: the output of ``salf export``, shown on the report page."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from salf.errors import UserError
from salf.plan import FreezePlan


def peft(plan: FreezePlan) -> str:
    """Return a call of ``peft.LoraConfig`` that adapts the trained layers, if any; rank and alpha are the user's."""
    if not plan.exports.peft:
        raise UserError(_told(plan, "PEFT"))
    settings = "\n".join(f"    {key}={value!r}," for key, value in plan.exports.peft.items())
    return f"from peft import LoraConfig\n\nlora = LoraConfig(\n{settings}\n)"


def trainer(plan: FreezePlan) -> str:
    """Return a Python function that freezes a model as planned, without this project."""
    return _function(plan, 'Trainer(model=model, args=TrainingArguments("out"), train_dataset=dataset)')


def trl(plan: FreezePlan) -> str:
    """Return the same function for TRL, and settings to train adapters instead of weights."""
    lines = [_function(plan, 'SFTTrainer(model=model, args=SFTConfig("out"), train_dataset=dataset)')]
    if plan.exports.peft:
        instead = ["Adapters in the same layers, without apply_freeze_plan:", "SFTTrainer(..., peft_config=lora)"]
        lines += ["", peft(plan), *_comments(instead)]
    return "\n".join(lines)


def axolotl(plan: FreezePlan) -> str:
    """Return entries for full fine-tuning, and for adapters as comments; Axolotl refuses both together."""
    # JSON strings are YAML, so patterns with carets or backslashes stay whole.
    lines = ["unfrozen_parameters:", *(f"  - {json.dumps(item)}" for item in plan.exports.axolotl)]
    if plan.exports.peft:
        settings = {
            "adapter": "lora",
            "lora_target_modules": plan.exports.peft["target_modules"],
            "peft_layers_to_transform": plan.exports.peft["layers_to_transform"],
            "peft_layers_pattern": [plan.exports.peft["layers_pattern"]],
        }
        instead = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
        lines += _comments(["Instead, adapters in the same layers:", *instead])
    return "\n".join(lines)


def llama_factory(plan: FreezePlan) -> str:
    """Return entries of a training configuration, if LLaMA-Factory has any for this plan."""
    if not plan.exports.llama_factory:
        raise UserError(_told(plan, "LLaMA-Factory"))
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in plan.exports.llama_factory.items())


def torchtune(plan: FreezePlan) -> str:
    """Return torchtune's names, if known, of the trained parameters, one per line for ``set_trainable_params``."""
    return "\n".join(torchtune_names(plan.model.family, plan.exports.parameter_names["trained"]))


def names(plan: FreezePlan) -> str:
    """Return the names of the trained parameters, one per line."""
    return "\n".join(plan.exports.parameter_names["trained"])


FORMATS: Final[Mapping[str, Callable[[FreezePlan], str]]] = {
    "peft": peft,
    "trl": trl,
    "trainer": trainer,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "torchtune": torchtune,
    "names": names,
}

_FUNCTION: Final = '''import re

# {scope}
TRAINED = re.compile(
    {pattern}
)


def apply_freeze_plan(model):
    """Freeze the rest; returns what trains, for an optimizer of your own."""
    if sum(parameter.numel() for parameter in model.parameters()) != {total:_}:
        raise ValueError({refusal!r})
    for name, parameter in model.named_parameters():
        parameter.requires_grad = TRAINED.match(name) is not None
    return [parameter for parameter in model.parameters() if parameter.requires_grad]'''


def _function(plan: FreezePlan, trainer: str) -> str:
    first, last = plan.boundary + 1, plan.model.layers
    layers = f"layers {first} to {last} of {last}" if plan.boundary < last else f"none of the {last} layers"
    parts = [layers, "the final norm", *["the head"] * plan.head_trained, *["the embeddings"] * plan.embeddings_trained]
    # The patterns for axolotl, which takes every dot for a dot.
    patterns = [part.removeprefix("^").replace(".", r"\.") for part in plan.exports.axolotl]
    function = _FUNCTION.format(
        scope=f"Trained: {', '.join(parts)} (plan for {plan.model.name}: {plan.selector}, boundary {plan.boundary}).",
        pattern="\n    ".join(f'r"{"|" * bool(at)}{pattern}"' for at, pattern in enumerate(patterns)),
        total=plan.parameters.total,
        refusal=f"the freeze plan is for {plan.model.name}, this is another model",
    )
    used = ["Before the trainer makes its optimizer:", "apply_freeze_plan(model)", f"trainer = {trainer}"]
    return "\n".join([function, "", "", *_comments(used)])


def _comments(lines: Iterable[str]) -> list[str]:
    return [f"# {line}" for line in lines]


def _told(plan: FreezePlan, tool: str) -> str:
    notes = [note for note in plan.exports.notes if note.startswith(tool)]
    return "; ".join(notes) or f"{tool}: there is nothing to export"


# torchtune's names of parameters whose weights come from Hugging Face: those of torchtune 0.6
# (`torchtune/models/convert_weights.py` and the models' own `_convert_weights.py`).
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
    **dict.fromkeys(("gemma", "llama", "mistral", "qwen2"), _LLAMA),
    "gemma2": _GEMMA2,
}


def torchtune_names(model_type: str, names: Iterable[str]) -> list[str]:
    """Return torchtune's names of parameters in the order given; a ``UserError`` where one is not in the table."""
    if model_type not in _RENAMED:
        known = ", ".join(sorted(_RENAMED))
        raise UserError(f"torchtune: its names for model type {model_type!r} are not known here; known: {known}")
    return [_renamed(name, _RENAMED[model_type]) for name in names]


def _renamed(name: str, table: Mapping[str, str]) -> str:
    layer, part = re.fullmatch(r"(?:model\.(layers\.\d+\.))?(.+)", name).groups(default="")  # type: ignore[union-attr]
    for theirs in (part, part.rpartition(".")[0]):
        if theirs in table:
            return f"{layer}{table[theirs]}{part.removeprefix(theirs)}"
    raise UserError(f"torchtune: parameter {name} has no name there")
