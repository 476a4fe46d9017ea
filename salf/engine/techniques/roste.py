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

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from salf.engine.batches import Batch
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import PACKED
from salf.engine.models.causal_model import in_eval_mode
from salf.engine.techniques.quantiser import ACTIVATIONS, WEIGHTS, Reads, Site
from salf.engine.training.checkpoint import Training
from salf.engine.training.forms import Weights
from salf.engine.training.scope import Scope
from salf.engine.training.step import Job
from salf.errors import UserError
from salf.records import Artifact
from salf.settings import Finetune, Roste
from salf.shape import ModelShape


class Errors(BaseModel):
    """Quantisation errors without and with rotation.

    ``error``: squared, as a share of the squares. ``outliers``: the largest value of a group over its RMS, mean over
    groups, which are rows of activations or the weights of an output.
    """

    error: tuple[float, float]
    outliers: tuple[float, float]

    @classmethod
    def of(cls, sums: Tensor) -> "Errors":
        """From sums without and with rotation, [2, 4]: see :attr:`Site.measured`."""
        error, squares, peaks, groups = sums.double().T  # [2] each
        shares, means = error / squares.clamp(min=1e-30), peaks / groups.clamp(min=1)
        return cls(error=(float(shares[0]), float(shares[1])), outliers=(float(means[0]), float(means[1])))


class SiteRecord(BaseModel):
    """What some modules read, how it is rotated, and with which errors it is quantised; so are linear maps' weights."""

    reads: Reads
    modules: list[str]
    rotated: bool
    signs: str  # of the rotation: a bit for each, as hexadecimal digits
    width: int
    activations: Errors
    weights: Errors | None

    @classmethod
    def of(cls, site: Site) -> "SiteRecord":
        """What a site has decided and measured."""
        activations, weights = (Errors.of(sums) for sums in site.measured)
        return cls(
            reads=site.reads,
            modules=site.names,
            rotated=bool(site.rotates),
            signs=np.packbits(site.signs.cpu().numpy() > 0).tobytes().hex(),
            width=len(site.signs),
            activations=activations,
            weights=weights if site.reads == "inputs" else None,
        )

    def site(self, settings: Roste, device: torch.device) -> Site:
        """The site that this was."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.signs), dtype=np.uint8), count=self.width)
        made = Site(self.reads, self.modules, torch.from_numpy(bits * 2.0 - 1).to(device), settings)
        made.rotates.fill_(self.rotated)
        return made


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
        site = one.site(record.settings, model.device)
        site.attach(model)
        for part in site.parts if one.reads == "inputs" else []:
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return model


class Quantised(Weights):
    """The network's own weights, of which those of the layers' linear maps are quantised in every pass."""

    def __init__(
        self, model: CausalModel, scope: Scope, layers: Collection[int], settings: Finetune, seed: int
    ) -> None:
        super().__init__(model, scope, layers, settings, seed)
        self.asked, self.network, generator = settings.roste, model.network, torch.Generator().manual_seed(seed)
        paths = [f"{model.family.layers}.{layer - 1}" for layer in layers]
        found: list[tuple[Reads, list[str], int]] = [("inputs", *both) for both in _inputs(model, paths)]
        if self.asked.kv_bits is not None:
            found += _keys_values(model, paths)
        self.sites = []
        for reads, names, width in found:
            signs = torch.randint(2, (width,), generator=generator) * 2.0 - 1
            self.sites.append(Site(reads, names, signs.to(model.device), self.asked))
            self.sites[-1].attach(model.network)

    def decided(self) -> dict[str, Tensor]:
        """Which sites are rotated, and what was measured of them."""
        kept = {f"rotates.{number}": site.rotates for number, site in enumerate(self.sites)}
        return kept | {f"measured.{number}": site.measured for number, site in enumerate(self.sites)}

    def begin(self, job: Job, loss: Callable[[Batch], Tensor], done: Training) -> None:
        """Measure all sites over calibration examples, drawn by the seed; choose which are rotated."""
        training, size = job.training, job.settings.batch_size
        count = min(self.asked.calibration, len(training))
        drawn = np.random.default_rng(abs(job.seed)).choice(len(training), count, replace=False).tolist()
        parts = [training.batch(sorted(drawn[at : at + size])) for at in range(0, count, size)]
        with self._measuring(), torch.no_grad(), in_eval_mode(self.network):
            for part in job.processes.share(parts):
                loss(part.to(job.runtime.device))
        for site in self.sites:
            sums = site.measured[ACTIVATIONS].to(job.runtime.device)
            site.measured[ACTIVATIONS] = job.processes.add_up(sums).cpu()
            site.choose(count)
        flops = sum(job.costs.step([part]).forward for part in parts)
        done.flops, done.flops_before = done.flops + flops, done.flops_before + flops
        done.observed |= self._observed()

    def fold(self) -> set[str]:
        """Leave the weights as they trained, unquantised."""
        for site in self.sites:
            site.detach(self.network)
        return super().fold()

    def save(self, folder: Path, _base: str, _revision: str | None) -> None:
        """Write ``quantisation.json``."""
        Quantisation(settings=self.asked, sites=[SiteRecord.of(site) for site in self.sites]).save(folder)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        for site in self.sites:
            site.measuring = True
        try:
            yield
        finally:
            for site in self.sites:
                site.measuring = False

    def _observed(self) -> dict[str, float]:
        """Errors and outliers of all sites together."""
        sums = torch.stack([site.measured for site in self.sites]).sum(0)  # [2, 2, 4]
        observed = {"share of sites rotated": float(torch.stack([site.rotates for site in self.sites]).mean())}
        for name, kind in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
            for what, both in Errors.of(sums[kind]).model_dump().items():
                observed |= {f"{what} of {name}": both[0], f"{what} of {name}, rotated": both[1]}
        return observed


@torch.no_grad()
def _inputs(model: CausalModel, paths: Sequence[str]) -> list[tuple[list[str], int]]:
    """The linear maps inside modules, those together that read the same tensor; and how wide that is."""
    found: list[tuple[Tensor, list[str]]] = []  # tensors are held, so that no other takes their place

    def of(name: str) -> Callable[..., None]:
        def read(_part: nn.Module, given: tuple[Tensor, ...]) -> None:
            names = next((names for tensor, names in found if tensor is given[0]), None)
            if names is None:
                found.append((given[0], [name]))
            else:
                names.append(name)

        return read

    with ExitStack() as stack, in_eval_mode(model.network):
        for path in paths:
            for name, part in model.network.get_submodule(path).named_modules(prefix=path):
                if isinstance(part, nn.Linear | Conv1D):
                    stack.enter_context(part.register_forward_pre_hook(of(name)))
        model.network(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    return [(names, tensor.shape[-1]) for tensor, names in found]


def _keys_values(model: CausalModel, paths: Sequence[str]) -> list[tuple[Reads, list[str], int]]:
    """Keys and values of the attention modules inside modules."""
    config = model.network.config
    if not model.family.packed:
        raise UserError(
            f"model type {config.model_type!r}: its attention does not hand over its keys and values; "
            "set finetune.roste.kv_bits to null"
        )
    width = ModelShape.from_config(config.to_dict()).head_dim
    parts = (
        (name, part) for path in paths for name, part in model.network.get_submodule(path).named_modules(prefix=path)
    )
    names = [name for name, part in parts if name not in paths and hasattr(part, "layer_idx")]
    reads: tuple[Reads, ...] = ("keys", "values")
    return [(what, [name], width) for name in names for what in reads]
