"""What follows from the boundary of a freeze plan: what trains, and the settings that make other tools train it."""

from typing import Any, Final

from salf.families import Family, family_of
from salf.parameters import trained_names
from salf.plan_records import Exports, ParameterCounts, PlannedModel
from salf.records import BaseFacts

_FACTORY_NORM: Final = (
    "LLaMA-Factory: the final norm stays frozen; naming 'norm' in freeze_extra_modules would match every layer's "
    "norms by substring, unfreeze them below the boundary and send back-propagation all the way down"
)
_FACTORY_NOTHING: Final = "LLaMA-Factory: cannot train the final norm alone; no settings are given"
_PEFT_NOTHING: Final = "PEFT: no layer is left to adapt; an empty layers_to_transform would adapt every layer"


def at_boundary(base: BaseFacts, boundary: int) -> dict[str, Any]:
    """The fields of a freeze plan that follow from its boundary."""
    shape, trained, total = base.shape, base.trained_parameters(boundary), base.trained_parameters(0)
    return {
        "model": PlannedModel(**base.identity.model_dump(include=set(PlannedModel.model_fields))),
        "boundary": boundary,
        "frozen_layers": list(range(1, boundary + 1)),
        "trained_layers": list(range(boundary + 1, shape.layers + 1)),
        "embeddings_trained": boundary == 0,
        "norm_trained": True,
        "head_trained": boundary == 0 or not shape.tied_head,
        "head_note": _head_note(shape.tied_head, boundary),
        "exports": _exports(base, boundary),
        "parameters": ParameterCounts(frozen=total - trained, trained=trained, total=total),
    }


def _head_note(tied: bool, boundary: int) -> str:
    if not tied:
        return "the head has its own weights and trains"
    fate = "both train" if boundary == 0 else "both stay frozen"
    return f"the head is tied: it is the embedding matrix, and {fate}"


def _exports(base: BaseFacts, boundary: int) -> Exports:
    """Settings that make other tools train what the plan trains (layers from 0), and what they cannot express."""
    names, layers, tied = base.identity.parameter_names, base.shape.layers, base.shape.tied_head
    family = family_of(base.identity.family, names)
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
    """``unfrozen_parameters``: regular expressions matched from a name's beginning; Axolotl escapes the dots."""
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
