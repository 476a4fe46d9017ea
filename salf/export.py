"""Translate a freeze plan for other tools: the output of ``salf export``, shown on the report page."""

import json
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


def names(plan: FreezePlan) -> str:
    """Return the names of the trained parameters, one per line."""
    return "\n".join(plan.exports.parameter_names["trained"])


FORMATS: Final[Mapping[str, Callable[[FreezePlan], str]]] = {
    "peft": peft,
    "trl": trl,
    "trainer": trainer,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
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
