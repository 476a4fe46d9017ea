"""Quantisation-aware fine-tuning with adaptive rotation (RoSTE; Wei et al. 2025, arXiv 2502.09003).

In every pass the linear maps of the scope's layers compute Q(x·R)·Q(W·R)ᵀ, and their attention reads quantised keys
(after rotary angles) and values. Q rounds to a grid; going backward it is the identity (straight-through). R is the
identity, or a random orthonormal Hadamard rotation that spreads outliers. Rotation is chosen once before training, per
input of linear maps and per layer's keys and values: where it lowers the summed squared error of weights and of
activations, as calibration examples give them at full precision. AdamW moves the unrotated weights (eq. 5).

Differences from the paper, whose code is not public. Its text rotates rows by H·diag(s); its bound (eq. 21) needs the
random signs s before H, as here. It rounds the zero-point down, by which a group's smallest value may be off by a whole
step; here it is rounded, and no value is off by more than half a step. It merges rotations between layers into the
weights (appendix D): the same function, but AdamW would then train rotated weights. Frozen layers, embeddings and head
stay at full precision here, so the model is a mixed one.
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from salf.engine.batches import Batch
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import PACKED, packed_attention
from salf.engine.models.causal_model import in_eval_mode
from salf.engine.training.checkpoint import Training
from salf.engine.training.forms import Weights
from salf.engine.training.scope import Scope
from salf.engine.training.step import Job
from salf.hadamard import factors, hadamard
from salf.records import Artifact
from salf.settings import Finetune, Roste
from salf.shape import ModelShape

Reads = Literal["inputs", "keys", "values"]
_ATTENTION: Final = "salf_quantised"
_SITES: Final = "salf_sites"  # an attention module's attribute: the sites of its keys and values


def on_grid(groups: Tensor, bits: int | None, clip: float = 1.0) -> Tensor:
    """Round each group [.., d] to 2^bits levels, evenly spread from its smallest value on over ``clip`` of its range.

    The level of 0 is a whole number. A group whose values are all the same stays as it is; so do all without ``bits``.
    """
    if bits is None:
        return groups
    values, most = groups.float(), 2**bits - 1
    low, high = values.aminmax(dim=-1, keepdim=True)
    step = clip * (high - low) / most
    zero = (-low / step).round()
    levels = ((values / step).round() + zero).clamp(0, most)
    return torch.where(step > 0, (levels - zero) * step, values).to(groups.dtype)


def rotated(rows: Tensor, signs: Tensor, *, back: bool = False) -> Tensor:
    """Rows [.., d] times R = diag(signs)·H/√d, which is orthonormal; ``back``: times Rᵀ."""
    signs = signs.to(rows.dtype)
    blocks, orders = factors(len(signs))
    grid = (rows if back else rows * signs).unflatten(-1, (blocks, -1))
    for order in reversed(orders):  # the last axis is multiplied, and goes to the front
        matrix = _matrix(order, rows.dtype, rows.device)
        grid = (grid.unflatten(-1, (-1, order)) @ (matrix.T if back else matrix)).transpose(-1, -2).flatten(-2)
    rows = grid.flatten(-2)
    return rows * signs if back else rows


@cache
def _matrix(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(hadamard(order)).to(device, dtype) * order**-0.5


class Site(nn.Module):
    """What some modules read, in rows of d values: how it is rotated and quantised, and their weights with it.

    ``reads``: the inputs of linear maps, whose weights it parametrizes, or the keys or values of attention modules,
    head by head.
    """

    def __init__(self, reads: Reads, names: list[str], signs: Tensor, asked: Roste) -> None:
        super().__init__()
        self.reads, self.names, self.signs, self.asked = reads, names, signs, asked
        self.bits = asked.activation_bits if reads == "inputs" else asked.kv_bits
        self.rotates = torch.tensor(float(asked.rotation == "all"))  # 1: yes
        self.measuring = False  # at full precision
        self.transposed = False  # the maps hold their weights as GPT-2's do, [in, out]
        # Of activations and weights, without and with rotation: squared error, squares, outliers, groups.
        self.measured = torch.zeros(2, 2, 4)
        self._undo: list[Callable[[], Any]] = []
        self._given: Tensor | None = None  # the rows that maps read at the moment, and what they take in their place
        self._entered: Tensor | None = None
        self._left = 0  # maps that have not read them yet

    def attach(self, network: PreTrainedModel) -> None:
        """Let the network's modules read what this site makes of their inputs, keys or values."""
        for part in map(network.get_submodule, self.names):
            if self.reads == "inputs":
                self.transposed = isinstance(part, Conv1D)
                self._undo.append(part.register_forward_pre_hook(self._enter).remove)
                parametrize.register_parametrization(part, "weight", self)
            else:
                vars(part).setdefault(_SITES, {})[self.reads] = self
                part.config = config = copy.copy(network.config.get_text_config())
                config._attn_implementation = _ATTENTION

    def detach(self, network: PreTrainedModel, *, quantised: bool = False) -> None:
        """Leave linear maps with the weights that train, or with quantised ones; these still read quantised inputs."""
        for undo in self._undo if not quantised else []:
            undo()
        for part in map(network.get_submodule, self.names):
            if self.reads == "inputs":
                parametrize.remove_parametrizations(part, "weight", leave_parametrized=quantised)
            elif not quantised:
                part.config = network.config.get_text_config()

    def quantised(self, groups: Tensor, bits: int | None) -> Tensor:
        """Groups [.., d] rotated, where this site is, and on their grids; gradients pass as if there were no grids."""
        groups = rotated(groups, self.signs) if self.rotates else groups
        if bits is None:
            return groups
        fixed = groups.detach()
        return on_grid(fixed, bits, self.asked.clip) + (groups - fixed)  # plus 0, whose gradient is the groups'

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that a map uses: a group for each output."""
        if self.measuring:
            return weight
        rows = weight.T if self.transposed else weight
        rows = self.quantised(rows, self.asked.weight_bits).to(weight.dtype)
        return rows.T if self.transposed else rows

    def entered(self, rows: Tensor) -> Tensor:
        """What is computed with in place of rows [.., d]; keys and values are rotated back, since queries are not."""
        if self.measuring:
            self.measure(0, rows, self.bits)
            return rows
        made = self.quantised(rows, self.bits)
        return rotated(made, self.signs, back=True) if self.rotates and self.reads != "inputs" else made

    def measure(self, kind: int, groups: Tensor, bits: int | None) -> None:
        """Add groups [.., d] of activations (0) or weights (1) to what is measured, without and with rotation."""
        for at, each in enumerate((groups.detach(), rotated(groups.detach(), self.signs))):
            rows = each.float().flatten(0, -2)
            squares = rows.square()
            error = (on_grid(rows, bits, self.asked.clip) - rows).square().sum()
            peaks = rows.abs().amax(-1) / squares.mean(-1).sqrt().clamp(min=1e-30)
            self.measured[kind, at] += torch.stack(
                [error, squares.sum(), peaks.sum(), error.new_tensor(len(rows))]
            ).cpu()

    def _enter(self, _part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Rotate and quantise an input once for all maps that read it."""
        if given[0] is not self._given or self._entered is None:
            self._given, self._entered, self._left = given[0], self.entered(given[0]), len(self.names)
        entered, self._left = self._entered, self._left - 1
        if not self._left:
            self._given = self._entered = None
        return (entered, *given[1:])


def quantised_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention by transformers' interface with quantised keys and values, [B, heads, T, head size] each."""
    sites: dict[str, Site] = vars(module)[_SITES]
    key, value = sites["keys"].entered(key), sites["values"].entered(value)
    return packed_attention(module, query, key, value, attention_mask, **options)


AttentionInterface.register(_ATTENTION, quantised_attention)


class SiteRecord(BaseModel):
    """A :class:`Site`; ``signs`` are those of its rotation as a row of + and -, empty where nothing is rotated."""

    reads: Reads
    modules: list[str]
    signs: str


class Quantisation(Artifact):
    """``quantisation.json``: what the saved weights need in order to compute as they were trained."""

    made_by, file = "finetune", "quantisation.json"

    schema_version: Literal[1] = 1
    settings: Roste
    sites: list[SiteRecord]


def quantised(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Let a model that transformers opened from a fine-tuned folder compute as it was trained, in place.

    Weights are put on their grids once; inputs, keys and values in every pass. Nothing happens where the folder has no
    ``quantisation.json``.

    Raises:
        UserError: that file is damaged.
    """
    if not (Path(folder) / Quantisation.file).exists():
        return model
    record = Quantisation.load(Path(folder))
    if model.config._attn_implementation != PACKED:
        model.set_attn_implementation("sdpa")  # whose masks ours takes
    for one in record.sites:
        signs = torch.tensor([1.0 if sign == "+" else -1.0 for sign in one.signs], device=model.device)
        site = Site(one.reads, one.modules, signs, record.settings)
        site.rotates.fill_(bool(one.signs))
        site.attach(model)
        site.detach(model, quantised=True)
    return model


class Quantised(Weights):
    """The network's own weights, of which those of the layers' linear maps are quantised in every pass."""

    def __init__(self, model: CausalModel, scope: Scope, settings: Finetune, seed: int) -> None:
        super().__init__(model, scope, settings, seed)
        self.asked, self.network, generator = settings.roste, model.network, torch.Generator().manual_seed(seed)
        shape, self.sites = ModelShape.from_config(model.network.config.to_dict()), list[Site]()
        for number in scope.layers:
            path = f"{model.family.layers}.{number - 1}"
            for reads, names, width in _sites(model.layers[number - 1], shape, kv=self.asked.kv_bits is not None):
                signs = torch.randint(2, (width,), generator=generator) * 2.0 - 1
                self.sites.append(Site(reads, [f"{path}.{name}" for name in names], signs.to(model.device), self.asked))
                self.sites[-1].attach(model.network)

    def decided(self) -> dict[str, Tensor]:
        """Which sites are rotated."""
        return {f"rotates.{number}": site.rotates for number, site in enumerate(self.sites)}

    def begin(self, job: Job, loss: Callable[[Batch], Tensor], done: Training) -> None:
        """Measure all sites over calibration examples, drawn by the seed; choose which are rotated.

        Rotation has to lower the squared error of a site's weights and, summed over an example, of its activations.
        """
        training, size = job.training, job.settings.batch_size
        count = min(self.asked.calibration, len(training))
        drawn = np.random.default_rng(abs(job.seed)).choice(len(training), count, replace=False).tolist()
        parts = [training.batch(sorted(drawn[at : at + size])) for at in range(0, count, size)]
        for site in self.sites:
            site.measuring = True
        with torch.no_grad(), in_eval_mode(self.network):
            for part in job.processes.share(parts):
                loss(part.to(job.runtime.device))
        for site in self.sites:
            site.measured = job.processes.add_up(site.measured.to(job.runtime.device)).cpu()
            for part in map(self.network.get_submodule, site.names if site.reads == "inputs" else []):
                site.measure(1, part.weight.T if site.transposed else part.weight, self.asked.weight_bits)
            errors = site.measured[1, :, 0] + site.measured[0, :, 0] / count
            if self.asked.rotation == "adaptive":
                site.rotates.fill_(errors[1] < errors[0])
            site.measuring = False
        flops = sum(job.costs.step([part]).forward for part in parts)
        done.flops, done.flops_before = done.flops + flops, done.flops_before + flops
        done.observed |= self._observed()

    def fold(self) -> set[str]:
        """Leave the weights as they trained, unquantised."""
        for site in self.sites:
            site.detach(self.network)
        return super().fold()

    def opened(self, network: PreTrainedModel) -> PreTrainedModel:
        """The network, which goes on to compute on grids."""
        return network

    def save(self, folder: Path, _base: str, _revision: str | None) -> None:
        """Write ``quantisation.json``."""
        sites = []
        for site in self.sites:
            signs = "".join("+" if sign > 0 else "-" for sign in site.signs.tolist())
            sites.append(SiteRecord(reads=site.reads, modules=site.names, signs=signs if site.rotates else ""))
        Quantisation(settings=self.asked, sites=sites).save(folder)

    def _observed(self) -> dict[str, float]:
        """Squared error as a share of the squares, and groups' largest value over their RMS, of all sites together."""
        observed = {"share of sites rotated": float(torch.stack([site.rotates for site in self.sites]).mean())}
        sums = torch.stack([site.measured for site in self.sites]).double().sum(0)  # [2, 2, 4]
        for name, both in zip(("activations", "weights"), sums, strict=True):
            for how, (error, squares, peaks, groups) in zip(("", ", rotated"), both.tolist(), strict=True):
                observed[f"error of {name}{how}"] = error / squares
                observed[f"outliers of {name}{how}"] = peaks / groups
        return observed


def _sites(layer: nn.Module, shape: ModelShape, *, kv: bool) -> list[tuple[Reads, list[str], int]]:
    """A layer's linear maps by what they read, and its attention's keys and values; with the width of their rows."""
    parts = list(layer.named_modules())
    maps = [name for name, part in parts if isinstance(part, nn.Linear | Conv1D)]
    attention = sum(part.role != "other" for part in shape.layer.maps)
    groups = [maps[:attention], maps[attention : attention + 1], maps[attention + 1 : -1], maps[-1:]]
    widths = [shape.hidden, shape.attention_width, shape.hidden, shape.layer.maps[-1].wide]
    found: list[tuple[Reads, list[str], int]] = [("inputs", *both) for both in zip(groups, widths, strict=True)]
    if kv:
        heads = [name for name, part in parts if name and hasattr(part, "layer_idx")]
        found += [("keys", heads, shape.head_dim), ("values", heads, shape.head_dim)]
    return found
