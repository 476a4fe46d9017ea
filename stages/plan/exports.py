"""The plan in the words of tools that people already use. Layers count from 0 there."""

from typing import Any, Final

from salf.families import Family, family_of
from salf.parameters import trained_names
from salf.plan_records import Exports
from salf.records import BaseFacts

_FACTORY_NORM: Final = (
    "LLaMA-Factory: the final norm stays frozen; naming 'norm' in freeze_extra_modules would match every layer's "
    "norms by substring, unfreeze them below the boundary and send back-propagation all the way down"
)
_FACTORY_NOTHING: Final = "LLaMA-Factory: cannot train the final norm alone; no settings are given"
_PEFT_NOTHING: Final = "PEFT: no layer is left to adapt; an empty layers_to_transform would adapt every layer"


def exports(base: BaseFacts, boundary: int) -> Exports:
    """Settings that make other tools train what the plan trains, and notes on what they cannot express."""
    names, layers, tied = base.identity.parameter_names, base.shape.layers, base.shape.tied_head
    family = family_of(base.family, names)
    notes = [_PEFT_NOTHING] if boundary == layers else []
    if boundary:
        notes.append(_FACTORY_NOTHING if boundary == layers and tied else _FACTORY_NORM)
    return Exports(
        peft=_peft(base, family, boundary),
        axolotl=_axolotl(family, layers, boundary, tied),
        llama_factory=_llama_factory(family, layers, boundary, tied),
        parameter_names={"trained": trained_names(names, family, boundary, tied_head=tied)},
        notes=notes,
    )


def _peft(base: BaseFacts, family: Family, boundary: int) -> dict[str, Any]:
    """Keyword arguments of ``peft.LoraConfig``; rank and alpha are the user's."""
    layers = base.shape.layers
    if boundary == layers:
        return {}
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": base.shape.adapted_maps,
        "layers_to_transform": list(range(boundary, layers)),
        "layers_pattern": family.layers.rsplit(".", 1)[-1],
    }


def _axolotl(family: Family, layers: int, boundary: int, tied: bool) -> list[str]:
    """``unfrozen_parameters``: regular expressions matched from a name's beginning.

    Axolotl escapes every dot by itself; a trailing [..] would be read as a range of rows.
    """
    parts = [f"^{family.norm}."]
    if boundary < layers:
        parts.append(f"^{family.layers}.({'|'.join(map(str, range(boundary, layers)))}).")
    if boundary == 0:
        parts += [f"^{part}." for part in (family.embedding, *family.inputs)]
    if boundary == 0 or not tied:
        parts.append(f"^{family.head}.")
    return parts


def _llama_factory(family: Family, layers: int, boundary: int, tied: bool) -> dict[str, Any]:
    """Entries of a training file: the last ``freeze_trainable_layers`` layers train."""
    if boundary == 0:
        return {"finetuning_type": "full"}
    if boundary == layers and tied:
        return {}
    settings: dict[str, Any] = {
        "finetuning_type": "freeze",
        "freeze_trainable_layers": layers - boundary,
        "freeze_trainable_modules": "all",
    }
    if not tied:
        settings["freeze_extra_modules"] = family.head.rsplit(".", 1)[-1]
    return settings
