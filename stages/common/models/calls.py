"""What a model hands to its own layers, recorded from its own forward pass.

Every architecture scales or norms its embeddings, places its positions and turns its rotary angles in
its own way, layer by layer perhaps. None of that is written a second time here: the model's own trunk
runs with its layers left out, and what it would have given to each of them is kept. A layer called
with it computes what it computes inside the model.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn

# A mask of four dimensions is taken as it is; None would have the trunk build one over all packed rows.
_NO_MASK: Final = torch.zeros(1, 1, 1, 1)


@dataclass(frozen=True)
class LayerCall:
    """One layer, and what the trunk gives it beside the states.

    Attributes:
        layer: the decoder layer.
        states: what the trunk gives it as states: space 0 for the first layer.
        options: everything else, by name.
    """

    layer: nn.Module
    states: Tensor
    options: dict[str, Any]

    def run(self, states: Tensor, **options: Any) -> Tensor:
        """The layer's output for other states; some layers return it as the first of a tuple."""
        output = self.layer(states, **{**self.options, **options})
        return output[0] if isinstance(output, tuple) else output


class _EnoughRecorded(Exception):  # noqa: N818 (nothing went wrong: the rest of the trunk is not wanted)
    """Leaves the trunk at the last layer of interest."""


def layer_calls(trunk: nn.Module, layers: nn.ModuleList, last: int, **inputs: Any) -> list[LayerCall]:
    """The calls of layers 1..last, none of them run.

    Args:
        trunk: the module that holds the layers and calls them.
        layers: the decoder layers.
        last: how many of them are of interest, 1 at least.
        inputs: what the trunk is called with; positions are left out where it takes none.
    """
    calls: list[LayerCall] = []

    def recorder(layer: nn.Module) -> Callable[..., Tensor]:
        names = _parameters(type(layer).forward)

        def record(*values: Any, **options: Any) -> Tensor:
            states, *rest = (*values, *([options.pop(names[0])] if names[0] in options else []))
            calls.append(LayerCall(layer, states, {**dict(zip(names[1:], rest, strict=False)), **options}))
            if len(calls) == last:
                raise _EnoughRecorded
            return calls[0].states

        return record

    if "position_ids" not in _parameters(type(trunk).forward):
        inputs.pop("position_ids", None)
    with ExitStack() as stack:
        for layer in layers[:last]:
            stack.enter_context(computing(layer, recorder(layer)))
        stack.enter_context(suppress(_EnoughRecorded))
        trunk(**inputs, use_cache=False)
    return calls


def unmasked(like: Tensor) -> Tensor:
    """An attention mask that keeps the trunk from building its own; no layer gets to see it."""
    return _NO_MASK.to(like.device)


@contextmanager
def computing(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else for a while."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        vars(module).pop("forward")
        if own is not None:
            vars(module)["forward"] = own


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a forward pass takes by position or by name."""
    _, *parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
