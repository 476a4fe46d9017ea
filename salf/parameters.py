"""Decides by name which parameters of a network train above a boundary. No torch here.

PEFT wraps a network and renames its parameters (``base_model.model.…q_proj.base_layer.weight``, and
``…q_proj.lora_A.default.weight``). A module that PEFT adds something to holds the network's own one as
``base_layer`` (adapters) or ``original_module`` (whole copies, ``modules_to_save``): that tells the two apart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from salf.errors import UserError
from salf.families import Family

_PEFT_PREFIX: Final = "base_model.model."
_OWN_MODULE: Final = {"base_layer", "original_module"}


class CausalModel(Protocol):
    """The parts of a Hugging Face ``...ForCausalLM`` that applying a plan needs, whoever wrapped it."""

    def named_parameters(self, *, remove_duplicate: bool) -> Iterable[tuple[str, Any]]:
        """Names and parameters; a tied head a second time unless duplicates are removed."""


@dataclass(frozen=True)
class NetworkParameters:
    """A model's parameters by the places that they have in the plain network."""

    own: Mapping[str, Any]  # the network's own, by its own names
    added: Mapping[str, Any]  # PEFT's, by names that begin as those of the module that they belong to

    @classmethod
    def of(cls, model: CausalModel) -> Self:
        """Sort the parameters of a plain or wrapped model."""
        # With duplicates: of a tied head that PEFT wrapped, nothing else shows that PEFT added something to it.
        pairs = [
            (tuple(name.removeprefix(_PEFT_PREFIX).split(".")), parameter)
            for name, parameter in model.named_parameters(remove_duplicate=False)
        ]
        wrapped = {name[:at] for name, _ in pairs for at, part in enumerate(name) if part in _OWN_MODULE}
        own, added, seen = dict[str, Any](), dict[str, Any](), set[int]()
        for name, parameter in pairs:
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if any(name[:at] in wrapped and part not in _OWN_MODULE for at, part in enumerate(name)):
                added[".".join(name)] = parameter
            else:
                own[".".join(part for part in name if part not in _OWN_MODULE)] = parameter
        return cls(own, added)

    def train_above(self, family: Family, boundary: int) -> list[Any]:
        """Set ``requires_grad`` of all parameters, and return those that train.

        In a plain network the boundary alone decides. Where PEFT added something, PEFT decides what trains
        (adapters, not weights), and the boundary where: below it, what PEFT trains is frozen. A ``UserError`` says that
        nothing is left.
        """
        everything = {**self.own, **self.added}
        tied_head = f"{family.head}.weight" not in self.own  # as a duplicate of the embedding
        above = set(trained_names(everything, family, boundary, tied_head=tied_head))
        for name, parameter in everything.items():
            parameter.requires_grad = name in above and (not self.added or parameter.requires_grad)
        trained = [parameter for parameter in everything.values() if parameter.requires_grad]
        if not trained:
            raise UserError(
                f"above boundary {boundary} nothing is left to train: PEFT put no adapter there, or froze it "
                "(an adapter that was loaded trains after PeftModel.from_pretrained(..., is_trainable=True))"
            )
        return trained


def trained_names(names: Iterable[str], family: Family, boundary: int, *, tied_head: bool) -> list[str]:
    """Filter the parameter names that train above a boundary, in the order given."""

    def trains(name: str) -> bool:
        if (index := family.layer_index(name)) is not None:
            return index >= boundary  # layer boundary + 1 is the first that trains
        if family.before_layers(name):
            return boundary == 0
        if name.startswith(f"{family.norm}."):
            return True
        if name.startswith(f"{family.head}."):
            return boundary == 0 or not tied_head
        raise UserError(f"parameter {name} belongs neither to the embeddings nor to a layer, the final norm or head")

    return [name for name in names if trains(name)]
