"""What a model hands to its own layers, recorded from its own forward pass.

Every architecture scales or norms its embeddings, places its positions and turns its rotary angles in
its own way, layer by layer perhaps. None of that is written a second time here: the model's own trunk
runs with its layers left out, and what it would have given to each of them is kept. A layer called
with it computes what it computes inside the model.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    recorders = {number: _Recorder(layer, calls=calls, last=last) for number, layer in layers.named_children()}
    if "position_ids" not in _parameters(type(trunk).forward):
        inputs.pop("position_ids", None)
    own = vars(layers)["_modules"]
    vars(layers)["_modules"] = recorders
    try:
        trunk(**inputs, use_cache=False)
    except _EnoughRecorded:
        return calls
    finally:
        vars(layers)["_modules"] = own
    raise RuntimeError(f"the model called {len(calls)} of its layers instead of {last}")


class StandIn(nn.Module):
    """In a layer's place, with the layer's own attributes: the layer's hooks and its forward pass do not run."""

    def __init__(self, layer: nn.Module, **own: Any) -> None:
        super().__init__()
        vars(self).update(layer=layer, **own)  # not registered: the layer's parameters stay out of the module tree

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["layer"], name)


class _Recorder(StandIn):
    """Keeps what the layer would have been given."""

    def forward(self, *values: Any, **options: Any) -> Tensor:
        """Keep what the layer would have been given; hand on what the first layer was given."""
        name, *names = _parameters(type(self.layer).forward)
        states, *rest = values or (options.pop(name),)
        self.calls.append(LayerCall(self.layer, states, {**dict(zip(names, rest, strict=False)), **options}))
        if len(self.calls) == self.last:
            raise _EnoughRecorded
        return self.calls[0].states


def apply(part: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    """Run a part of the model; where it is to be recomputed, back-propagation keeps its inputs alone."""
    return checkpoint(part, *inputs, use_reentrant=False) if recompute else part(*inputs)


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


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, in whichever modules it was on."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of what a forward pass takes by position or by name."""
    _, *parameters = inspect.signature(forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
