"""Quantisation of what linear maps and attention read, with and without rotation, in the middle of training."""

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from salf.engine.models.attention import packed_attention
from salf.hadamard import factors, hadamard
from salf.settings import Roste

Reads = Literal["inputs", "keys", "values"]

_ATTENTION: Final = "salf_quantised"
_SITES: Final = "salf_sites"  # an attention module's attribute: the sites of its keys and values
ACTIVATIONS, WEIGHTS = 0, 1  # rows of a site's measurements


def on_grid(groups: Tensor, bits: int | None, clip: float = 1.0) -> Tensor:
    """Round each group [.., d] to 2^bits levels, evenly spread from its smallest value on over ``clip`` of its range.

    The level of 0 is a whole number, and a group whose values are all the same stays as it is. ``None``: so do all.
    """
    if bits is None:
        return groups
    values, most = groups.float(), 2**bits - 1
    low, high = values.aminmax(dim=-1, keepdim=True)
    step = clip * (high - low) / most
    zero = (-low / step).round()
    levels = ((values / step).round() + zero).clamp(0, most)
    return torch.where(step > 0, (levels - zero) * step, values).to(groups.dtype)


def rotated(rows: Tensor, signs: Tensor) -> Tensor:
    """Rows [.., d] times R = diag(signs)·H/√d, which is orthonormal."""
    return _transformed(rows * signs.to(rows.dtype))


def rotated_back(rows: Tensor, signs: Tensor) -> Tensor:
    """Rows [.., d] times Rᵀ."""
    return _transformed(rows, back=True) * signs.to(rows.dtype)


def _transformed(rows: Tensor, *, back: bool = False) -> Tensor:
    blocks, first, second = factors(rows.shape[-1])
    left, right = (_matrix(order, rows.dtype, rows.device) for order in (first, second))
    left, right = (left.T, right.T) if back else (left, right)
    grid = rows.unflatten(-1, (blocks, first, second)) @ right  # [.., blocks, a, b]
    grid = grid.transpose(-1, -2) @ left  # [.., blocks, b, a]
    return grid.transpose(-1, -2).flatten(-3)


@cache
def _matrix(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(hadamard(order)).to(device, dtype) * order**-0.5


class _StraightThrough(torch.autograd.Function):
    """:func:`on_grid`, as if it were the identity when going backward."""

    @staticmethod
    def forward(_ctx: Any, groups: Tensor, bits: int, clip: float) -> Tensor:
        return on_grid(groups, bits, clip)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None


class Site:
    """What some modules read, in rows of d values: how it is rotated and quantised, and their weights with it.

    ``reads``: the inputs of linear maps, or the keys or values of an attention module, head by head.
    """

    def __init__(self, reads: Reads, names: Sequence[str], signs: Tensor, asked: Roste) -> None:
        self.reads, self.names, self.signs, self.asked = reads, list(names), signs, asked
        self.bits = asked.activation_bits if reads == "inputs" else asked.kv_bits
        self.rotates = torch.tensor(float(asked.rotation == "all"))  # 1: yes
        self.measuring = False  # full precision
        # Of activations and weights, without and with rotation: squared error, squares, outliers, groups.
        self.measured = torch.zeros(2, 2, 4)
        self.parts: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._given: Tensor | None = None  # the rows that the maps read at the moment,
        self._entered: Tensor | None = None  # what they take in their place,
        self._left = 0  # and how many maps have not read them yet

    def attach(self, network: PreTrainedModel) -> None:
        """Let the network's modules read what this site makes of their inputs."""
        self.parts = [network.get_submodule(name) for name in self.names]
        for part in self.parts:
            if self.reads == "inputs":
                self._hooks.append(part.register_forward_pre_hook(self._enter))
                parametrize.register_parametrization(part, "weight", _Weight(self, transposed=isinstance(part, Conv1D)))
            else:
                if _SITES not in vars(part):
                    vars(part)[_SITES] = {}
                    config: Any = copy.copy(part.config)
                    config._attn_implementation, part.config = _ATTENTION, config
                vars(part)[_SITES][self.reads] = self

    def detach(self, network: PreTrainedModel) -> None:
        """Undo :meth:`attach`; weights are again those that train."""
        for hook in self._hooks:
            hook.remove()
        for part in self.parts:
            if self.reads == "inputs":
                parametrize.remove_parametrizations(part, "weight", leave_parametrized=False)
            elif vars(part).pop(_SITES, None):
                part.config = network.config.get_text_config()

    def turned(self, rows: Tensor) -> Tensor:
        """Rows [.., d], rotated where this site is."""
        return rotated(rows, self.signs) if self.rotates else rows

    def turned_back(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`turned`."""
        return rotated_back(rows, self.signs) if self.rotates else rows

    def entered(self, rows: Tensor) -> Tensor:
        """What is computed with in place of rows [.., d]."""
        if self.measuring:
            self._measure(ACTIVATIONS, rows, self.bits)
            return rows
        return self.quantised(rows, self.bits)

    def quantised(self, groups: Tensor, bits: int | None) -> Tensor:
        """Groups [.., d] turned and on their grids; gradients pass as if there were no grids."""
        turned = self.turned(groups)
        if bits is None:
            return turned
        made: Tensor = _StraightThrough.apply(turned, bits, self.asked.clip)
        return made

    def choose(self, examples: int) -> None:
        """Measure the weights; with adaptive rotation, rotate if that lowers the summed squared error.

        Of activations it is the mean over the calibration ``examples``; if neither is lower, nothing is rotated.
        """
        for part in self.parts if self.reads == "inputs" else []:
            weights: Any = part.parametrizations
            self._measure(WEIGHTS, weights.weight[0].rows(weights.weight.original), self.asked.weight_bits)
        if self.asked.rotation == "adaptive":
            plain, turned = (self.measured[WEIGHTS] + self.measured[ACTIVATIONS] / examples)[:, 0].tolist()
            self.rotates.fill_(turned < plain)

    def _enter(self, _part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Turn and quantise an input once for all maps that read it."""
        if given[0] is not self._given or self._entered is None:
            self._given, self._entered, self._left = given[0], self.entered(given[0]), len(self.parts)
        entered, self._left = self._entered, self._left - 1
        if not self._left:
            self._given = self._entered = None
        return (entered, *given[1:])

    def _measure(self, kind: int, groups: Tensor, bits: int | None) -> None:
        with torch.no_grad():
            both = [
                _sums(each.float().flatten(0, -2), bits, self.asked.clip)
                for each in (groups, rotated(groups, self.signs))
            ]
        self.measured[kind] += torch.stack(both).cpu()


class _Weight(nn.Module):
    """A linear map's weight as its site quantises it: a group for each output."""

    def __init__(self, site: Site, *, transposed: bool) -> None:
        super().__init__()
        self.site, self.transposed = site, transposed

    def rows(self, weight: Tensor) -> Tensor:
        """[outputs, inputs], or back."""
        return weight.T if self.transposed else weight

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the map uses."""
        if self.site.measuring:
            return weight
        return self.rows(self.site.quantised(self.rows(weight), self.site.asked.weight_bits)).to(weight.dtype)


def _sums(groups: Tensor, bits: int | None, clip: float) -> Tensor:
    """Squared error on the grid, squares, and largest values over RMS, summed over groups [n, d]; their number: [4]."""
    error, squares = on_grid(groups, bits, clip) - groups, groups.square()
    peaks = groups.abs().amax(-1) / squares.mean(-1).sqrt().clamp(min=1e-30)
    return torch.stack([error.square().sum(), squares.sum(), peaks.sum(), peaks.new_tensor(len(peaks))])


def quantised_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention by transformers' interface with quantised keys and values, [B, heads, T, head size] each."""
    keys, values = (vars(module)[_SITES][name] for name in ("keys", "values"))
    turned = query if keys.measuring else keys.turned(query)
    attended, _ = packed_attention(module, turned, keys.entered(key), values.entered(value), attention_mask, **options)
    return attended if values.measuring else values.turned_back(attended), None


AttentionInterface.register(_ATTENTION, quantised_attention)
