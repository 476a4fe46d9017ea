"""Learned context pruning: each layer drops tokens for good (Anagnostidis et al. 2023, arXiv 2305.15805).

A trained layer gets an interaction: two maps q, k to a small width r, and a bias β. Token i lets an earlier token j
stay with p_ij = σ_α(q(x_i)·k(x_j)/√r + β); x is what the layer's attention reads. Of j, token i still sees the share
I_ij = Π_{j<t≤i} p_tj: attention adds log I, the same for all heads. σ_α solves p^(α−1) − (1−p)^(α−1) = (α−1)z. In
training α rises by a cosine from 1, the logistic function; elsewhere p is 1 or 0 by the sign of z. The loss is the
cross-entropy plus γ times the mean of I over all pairs of a token and an earlier one.

The mean of the public code (github.com/sanagno/adaptively_sparse_attention) is over a whole square, whose other half
is constant, so that half of γ acts. Its ``propagate_in_depth`` is left out: its own defaults contradict each other.
"""

import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from salf.engine.batches import Batch
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import PACKED, ChosenRows, Packing
from salf.engine.models.shards import write_tensors
from salf.engine.training.forms import Weights
from salf.engine.training.scope import Scope
from salf.engine.training.step import CrossEntropy, cross_entropy
from salf.errors import UserError, reading
from salf.settings import Finetune

_ATTENTION: Final = "salf_pruned"
_FILE: Final = Path("pruning", "interactions.safetensors")  # in a folder of its own: it is no shard of the base's
_LEAST: Final = torch.finfo(torch.float32).tiny  # in the place of a p of 0
_UNSEEN: Final = -1e30  # in the place of log 0: finite in every precision


def sigmoid(z: Tensor, alpha: float) -> Tensor:
    """σ_α, by a table that its derivative corrects, 1/(p^(α−2) + (1−p)^(α−2)): the gradient, too."""
    power = max(alpha - 1, 1e-6)
    logits = torch.linspace(-40, 40, 2**14, dtype=torch.float64, device=z.device)
    p, rest = logits.sigmoid(), (-logits).sigmoid()
    table = p, (p**power - rest**power) / power, 1 / (p ** (power - 1) + rest ** (power - 1))
    p, known, slope = (one.to(z.dtype) for one in table)
    at = torch.searchsorted(known, z.detach()).clamp(max=len(p) - 1)
    return torch.where(z.abs() * power < 1, p[at] + slope[at] * (z - known[at]), (z > 0).to(z.dtype))


class _Store(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values while one text is generated: those of tokens that it has not dropped."""

    is_croppable = False  # what was dropped cannot come back
    cumulative_length = 0  # tokens that have been read
    told: Tensor | None = None  # the interaction's keys, [1, S, r]

    def get_seq_length(self) -> int:
        """Return the number of tokens that have been read, by which positions go."""
        return self.cumulative_length


class Interaction(nn.Module):
    """What decides in a layer how much of earlier tokens a token still sees."""

    reads: Tensor  # what the attention that runs reads, [B, T, hidden]
    store: _Store | None  # the layer's place in the cache of the pass that runs
    log_kept: Tensor  # log I of the last packed pass, [B, T, T]
    listening: RemovableHandle
    alpha = 1.0

    def __init__(self, query: Tensor, key: Tensor, bias: Tensor) -> None:
        """``query`` and ``key`` are weights [r, hidden], ``bias`` is [1]."""
        super().__init__()
        self.query, self.key, self.bias = nn.Parameter(query), nn.Parameter(key), nn.Parameter(bias)

    def rows(self) -> Tensor:
        """Queries and keys of the rows that the attention reads, [B, T, 2r]."""
        return nn.functional.linear(self.reads, torch.cat([self.query, self.key]))

    def decide(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Log I of T tokens [B, T, r], the last of S + T of which none was dropped before: [B, T, S + T]."""
        z = queries.float() @ keys.float().transpose(1, 2) * queries.shape[2] ** -0.5 + self.bias
        seen = torch.ones_like(z[0], dtype=torch.bool).tril(z.shape[2] - z.shape[1])  # [T, S + T]
        earlier, p = seen.tril(z.shape[2] - z.shape[1] - 1), torch.ones_like(z)
        p[:, earlier] = sigmoid(z[:, earlier], self.alpha) if self.training else (z[:, earlier] > 0).to(z.dtype)
        return torch.where(seen, p.clamp(min=_LEAST).log().cumsum(1), _UNSEEN)


def pruned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | ChosenRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention by transformers' interface to what the module's interaction has not dropped."""
    own: Any = module.interaction
    if options.get("sliding_window") or options.get("softcap"):
        raise UserError("dcp: attention in a sliding window, or of capped scores, has not been pruned; leave out +dcp")

    def kernel(queries: Tensor, keys: Any, values: Any, mask: Tensor | None) -> Tensor:
        (keys,), (values,), heads = keys, values, value.shape[1]
        keys, told = keys[:, :heads], keys[:, heads:].transpose(1, 2).flatten(2)[..., : 2 * len(own.query)]
        log_kept = own.decide(*told.chunk(2, -1))  # [B, K, K]
        rows: Any = packing.packing if isinstance(packing, ChosenRows) else packing
        if keys.shape[2] == rows.past + rows.longest:  # or else the shared prefix alone
            own.log_kept = log_kept
        if mask is not None:  # a query's own place is the last that it sees
            places = (mask[:, 0] * torch.arange(keys.shape[2], device=mask.device)).amax(-1)
            log_kept = log_kept.take_along_dim(places[..., None], 1)
        return sdpa_attention_forward(module, queries, keys, values, log_kept[:, None].to(query.dtype), **options)[0]

    if packing is None:
        return sdpa_attention_forward(module, query, key, value, _unpacked(own, attention_mask), **options)
    if not isinstance(packing, ChosenRows):  # rows of the interaction go wherever the keys go, as further heads
        told, size = own.rows(), key.shape[3]
        told = nn.functional.pad(told, (0, -told.shape[2] % size)).unflatten(2, (-1, size))
        key = torch.cat([key, told.transpose(1, 2)], 1)
    return packing.attend(module, query, key, value, kernel, sys.maxsize), None


def _unpacked(own: Interaction, mask: Tensor | None) -> Tensor:
    """Log I of a batch, [B, 1, T, T], or of one text's new tokens, [1, 1, T, S + T]; its store drops what they drop."""
    (queries, told), store = own.rows().chunk(2, -1), own.store
    if store is not None:
        store.cumulative_length += told.shape[1]
        if len(told) > 1 and store.cumulative_length > told.shape[1]:
            raise UserError("a pruned model generates one text at a time; or set use_cache to False")
        told = told if store.told is None else torch.cat([store.told, told], 1)
    log_kept = own.decide(queries, told)
    if store is not None and len(told) == 1:
        kept, mask = log_kept[0, -1] == 0, None
        store.keys, store.values, store.told = store.keys[:, :, kept], store.values[:, :, kept], told[:, kept]
    log_kept = log_kept[:, None] if mask is None else torch.where(mask, log_kept[:, None], _UNSEEN)
    return log_kept.to(own.reads.dtype)


AttentionInterface.register(_ATTENTION, pruned_attention)


def interactions(network: nn.Module) -> list[Interaction]:
    """Those of a network, the lowest layer's first."""
    return [part for part in network.modules() if isinstance(part, Interaction)]


def _attach(network: PreTrainedModel, part: Any, own: Interaction) -> None:
    """Let an attention module drop what an interaction decides."""
    part.interaction = own.train(part.training)
    part.config = copy.copy(network.config.get_text_config())
    part.config._attn_implementation = _ATTENTION

    def listen(_: nn.Module, given: tuple[Any, ...], options: dict[str, Any]) -> None:
        own.reads = given[0] if given else options["hidden_states"]
        own.store, here = None, slice(part.layer_idx, part.layer_idx + 1)
        for cache in (one for one in (*given, *options.values()) if isinstance(one, Cache)):
            if not any(isinstance(one, _Store) for one in cache.layers[here]):
                cache.layers[here] = [_Store()]
            own.store = cache.layers[part.layer_idx]

    own.listening = part.register_forward_pre_hook(listen, with_kwargs=True)


class Pruned(Weights):
    """The network's own weights, and an interaction in each layer."""

    def __init__(self, model: CausalModel, scope: Scope, settings: Finetune, seed: int) -> None:
        super().__init__(model, scope, settings, seed)
        self.network, asked = model.network, settings.dcp
        hidden, generator = model.network.config.get_text_config().hidden_size, torch.Generator().manual_seed(seed)
        for number in scope.layers:
            (part,) = (
                one for name, one in model.layers[number - 1].named_modules() if name and hasattr(one, "layer_idx")
            )
            query, key = torch.randn(2, asked.width, hidden, generator=generator) * hidden**-0.5
            own = Interaction(query, key, torch.tensor([asked.bias]))
            _attach(model.network, part, own.to(model.device))

    def fold(self) -> set[str]:
        """Leave the weights without interactions."""
        part: Any
        for part in [one for one in self.network.modules() if hasattr(one, "interaction")]:
            part.interaction.listening.remove()
            del part.interaction
            part.config = self.network.config.get_text_config()
        return super().fold()

    def save(self, folder: Path, _base: str, _revision: str | None) -> None:
        """Write the interactions."""
        (folder / _FILE).parent.mkdir()
        named = self.network.named_parameters()
        write_tensors(folder / _FILE, {name: one for name, one in named if ".interaction." in name})


class Sparse(CrossEntropy):
    """Objective: cross-entropy, and the share of earlier tokens that are still seen."""

    def begin(self, parts: Sequence[Batch], number: int) -> Sequence[Batch]:
        """Begin a step with its α."""
        progress, sharpness = number / max(1, self.job.steps - 1), self.job.settings.dcp.alpha
        for one in interactions(self.job.trainable.model.network):
            one.alpha = 1 + (sharpness - 1) * (1 - math.cos(math.pi * progress)) / 2
        self.sums = torch.zeros(2, device=self.job.runtime.device)  # cross-entropy, and tokens
        return parts

    def __call__(self, part: Batch) -> Tensor:
        """Both, summed over the answer tokens of a part: an example's share counts for each of its own."""
        loss = cross_entropy(self.passes, part)
        self.sums += torch.stack([loss.detach(), torch.full_like(loss, len(part.targets))])
        kept = kept_shares(self.job.trainable.model.network, part).mean(0)
        return loss + self.job.settings.dcp.strength * (kept * part.rows.bincount()).sum()

    def end(self, _: float) -> float:
        """The cross-entropy alone."""
        loss, tokens = self.job.processes.add_up(self.sums).tolist()
        return float(loss / tokens)


def kept_shares(network: nn.Module, batch: Batch) -> Tensor:
    """Mean of I over all pairs of a token and an earlier one, in the last pass over a batch: [layers, B]."""
    ends = torch.tensor(batch.lengths, device=batch.ids.device)[:, None, None] + batch.shared
    shares = []
    for one in interactions(network):
        places = torch.arange(one.log_kept.shape[1], device=ends.device)
        pairs = (places[:, None] > places) & (places[:, None] < ends)  # [B, T, T]
        shares.append((one.log_kept.exp() * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1))
    return torch.stack(shares)


def pruned(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Let a model that transformers opened from a fine-tuned folder drop tokens as it was trained to, in place.

    Dropped keys and values leave the cache while it generates. A folder without interactions changes nothing.

    Raises:
        UserError: their file is damaged, or belongs to another model.
    """
    path = Path(folder) / _FILE
    if not path.exists():
        return model
    if model.config._attn_implementation != PACKED:
        model.set_attn_implementation("sdpa")  # whose masks ours takes
    with reading(path, "no interactions of this model; fine-tune it again"):
        saved = load_file(path, device=str(model.device))
        for name in [name.removesuffix(".bias") for name in saved if name.endswith(".bias")]:
            own = Interaction(*(saved[f"{name}.{part}"] for part in ("query", "key", "bias")))
            _attach(model, model.get_submodule(name.removesuffix(".interaction")), own.requires_grad_(False))
    return model


@torch.no_grad()
def generation_costs(
    models: Mapping[str, PreTrainedModel], prompt: Tensor, tokens: int, rounds: int = 3
) -> dict[str, tuple[float, int]]:
    """Let models continue a prompt [1, T] in turns, for example ``{"dense": ..., "pruned": salf.pruned(...)}``.

    Returns by name the new tokens per second in the fastest round, the prompt's time included, and the bytes of keys,
    values and interactions' keys that are stored in the end.
    """
    asked = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    mask, found = torch.ones_like(prompt), dict.fromkeys(models, (0.0, 0))
    for name, model in [*models.items()] * rounds:
        cache, began = DynamicCache(config=model.config), time.perf_counter()
        model.generate(prompt, attention_mask=mask, generation_config=asked, past_key_values=cache)
        speed = tokens / (time.perf_counter() - began)
        held = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
        found[name] = max(found[name], (speed, sum(value.nbytes for value in held)))
    return found
