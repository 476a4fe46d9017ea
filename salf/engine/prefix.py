"""The frozen layers' pass over a tokenised dataset, once (ours): boundary states in place of tokens."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from salf.answer_folder import common_beginning
from salf.engine.batches import Example, Split
from salf.engine.boundary_cache.folder import alone, amount, key_of, read_states, units_in_memory, write_states
from salf.engine.boundary_cache.states import BoundaryStates, Layout, Timed, frozen_states, gather
from salf.engine.models.adapter import CausalModel, apart
from salf.engine.runtime import Runtime
from salf.engine.suffix import frozen_layers, network_of
from salf.errors import UserError
from salf.memory import free_memory_bytes
from salf.plan import FreezePlan
from salf.settings import FrozenWeights

if TYPE_CHECKING:
    import datasets

IGNORED: Final = -100  # labels that transformers' losses leave out
_PACKED: Final = ("position_ids", "seq_lengths")  # columns of rows that hold several examples

Row = dict[str, Tensor]


class Rows(Protocol):
    """A tokenised dataset: of `datasets`, of torch, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class CachedRows(Dataset[Row]):
    """Items that are read from a cache, one per example."""

    _labels: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self._labels)

    def to_datasets(self) -> "datasets.Dataset":
        """Return the same items as a `datasets.Dataset`, which TRL's trainers ask for; they are looked up lazily.

        A Trainer needs `remove_unused_columns=False`: the dataset's only column is a number.
        """
        import datasets  # TRL brings it

        numbers = datasets.Dataset.from_dict({"number": range(len(self))})
        caching = datasets.is_caching_enabled()
        datasets.disable_caching()  # it would hash the cache
        try:
            return numbers.with_transform(_LookUp(self))
        finally:
            if caching:
                datasets.enable_caching()


class PrefixStates(CachedRows):
    """Boundary states of a tokenised dataset, one item per example.

    An item has `inputs_embeds`, the states [T, H], `labels` [T] and its `boundary`; padding of the original row is
    gone. Use `collate_states` to make batches.

    Attributes:
        boundary: the last frozen layer.
        size: bytes of all states.
        reused: they come from a file that was already there.
    """

    def __init__(self, states: BoundaryStates, labels: Sequence[Tensor], *, reused: bool = False) -> None:
        """Wrap states of examples whose labels are given, [T] each."""
        self._states, self._labels, self.reused = states, labels, reused
        self.boundary, self.size = states.space, states.rows.nbytes

    def __getitem__(self, index: int) -> Row:
        rows = self._states.layout.rows_of(torch.tensor([range(len(self))[index]]), joined=True)
        states = {"inputs_embeds": self._states.rows.index_select(0, rows), "boundary": torch.tensor(self.boundary)}
        return {**states, "labels": self._labels[index]}


@dataclass(frozen=True)
class _LookUp:
    """A transform of `datasets` that is never copied: it holds the cache."""

    cached: CachedRows

    def __call__(self, rows: Mapping[str, Sequence[int]]) -> dict[str, list[Tensor]]:
        items = [self.cached[number] for number in rows["number"]]
        return {name: [item[name] for item in items] for name in items[0]}

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a cache is not pickled; keep dataloader_num_workers at 0, or let workers be forked")


def collate_states(rows: Sequence[Row], padding_side: Literal["left", "right"] = "right") -> Row:
    """Make a batch of items of `PrefixStates`, for a `DataLoader` or a Trainer's `data_collator`.

    States are padded with zeros, labels with -100, and the attention mask says which are which. Position ids are not
    needed: states carry their positions, and the layers above only see distances.

    Args:
        rows: items.
        padding_side: use `functools.partial` to pad on the left.

    Returns:
        `inputs_embeds` [B, T, H], `attention_mask` [B, T], `labels` [B, T], and `boundary` [B], which a suffix compares
        with its own.

    Raises:
        UserError: rows are something else, such as token ids.
    """
    padded = partial(pad_sequence, batch_first=True, padding_side=padding_side)
    if not all({"inputs_embeds", "boundary"} <= row.keys() for row in rows):
        raise UserError("these are not items of salf.prefix_states; an evaluation split needs its states, too")
    labels = [row["labels"] for row in rows]
    return {
        "inputs_embeds": padded([row["inputs_embeds"] for row in rows]),
        "attention_mask": padded([torch.ones_like(one) for one in labels]),
        "labels": padded(labels, padding_value=IGNORED),
        "boundary": torch.stack([row["boundary"] for row in rows]),
    }


def prefix_states(
    model: nn.Module,
    dataset: Rows,
    plan_or_boundary: FreezePlan | int,
    *,
    scope: str | None = None,
    file: str | Path | None = None,
    bf16: bool = False,
    batch_tokens: int = 4096,
) -> PrefixStates:
    """Run a model's frozen layers over a tokenised dataset, once and without gradients.

    The layers run in eval mode: dropout in frozen layers is off. Passes hold examples of similar length, without
    padding where the architecture allows it, and a prefix that all examples share is computed once. Compute the
    states of the model that you train: after quantisation, and after adapters that change frozen layers.

    Args:
        model: a Hugging Face causal language model, or PEFT's wrapper around one.
        dataset: rows with `input_ids`; padding, if any, is marked by `attention_mask`. `labels` are optional: without
            them every token is a label, as in causal language modelling.
        plan_or_boundary: a freeze plan, or the last frozen layer (1 to L).
        scope: a selector or `freeze-<k>`, to use its boundary instead of the plan's own.
        file: where to keep the states, as a memory-mapped safetensors file. A file that was computed from the same
            weights, tokens, precision, library versions and kind of machine is opened instead of recomputed.
        bf16: multiply in bfloat16 (autocast), as a Trainer with `bf16=True` does.
        batch_tokens: tokens in one pass.

    Raises:
        UserError: memory or disk is too small (nothing is computed then), the file holds something else, a row cannot
            be used, the plan is for another model, or the model's layers cannot be run apart from the rest.
    """
    network = network_of(model)
    boundary = frozen_layers(network, plan_or_boundary, scope)
    examples, labels = read_rows(dataset, network.get_input_embeddings().weight.shape[0])
    split = Split(examples, shared_tokens([example.prompt_ids for example in examples]))
    with apart(network) as causal:
        require_positions(causal, split)
        states, reused = cached_states(causal, runtime_of(causal, bf16=bf16), split, boundary, batch_tokens, file)
    return PrefixStates(states, labels, reused=reused)


def cached_states(
    model: CausalModel, runtime: Runtime, split: Split, boundary: int, batch_tokens: int, file: str | Path | None
) -> tuple[BoundaryStates, bool]:
    """The boundary states of a split's examples, on the host, and whether they were in the file before."""
    layout = Layout.of(split.examples, split.shared, batch_tokens)
    parts = Timed(frozen_states(model, runtime, layout, boundary))

    def key() -> str:
        return key_of(model, runtime, units_in_memory(model, boundary), layout)

    rows, reused = kept("the boundary states", file, key, parts, layout, model.state_bytes)
    return BoundaryStates(boundary, layout, rows, torch.device("cpu")), reused


def shared_tokens(ids: Sequence[tuple[int, ...]]) -> int:
    """Number of tokens that all examples begin with; each keeps one of its own."""
    return min(len(common_beginning(ids)), min(map(len, ids)) - 1)


def kept(
    what: str, file: str | Path | None, key: Callable[[], str], parts: Timed, layout: Layout, row_bytes: int
) -> tuple[Tensor, bool]:
    """Parts [n, width] in memory, or mapped from a file, and whether they were there before.

    A ``UserError`` says that there is no room, or something else in the file.
    """
    rows, size = layout.rows, layout.rows * row_bytes
    if file is None:
        _require_room(what, size, free_memory_bytes(), "memory is free; pass file= to keep them on disk")
        return gather(parts, rows), False
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{path}: it is a folder; name a file")
    digest = key()
    try:
        # A file has its name once it is complete, and reading it writes nothing: its folder may be read-only.
        with nullcontext() if path.exists() else alone(path):  # of several processes one computes
            if not path.exists():
                free = shutil.disk_usage(path.parent).free
                _require_room(what, size, free, f"free in {path.parent}; name another disk")
                return write_states(path, digest, parts, rows), False
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be written: {error.strerror}; name another file") from None
    if (found := read_states(path, digest)) is not None:
        return found[0], True
    raise UserError(f"{path}: not {what} of this model, data, versions and machine, or damaged; name another")


def _require_room(what: str, size: int, free: int, where: str) -> None:
    if size > free:
        raise UserError(f"{what} need {amount(size)}, and {amount(free)} of {where}")


def require_positions(model: CausalModel, split: Split) -> None:
    """Positions that are learned end somewhere, and some computed ones depend on the batch from somewhere on."""
    longest = split.shared + max(split.lengths)
    if (steady := model.steady_positions) and longest > steady:
        raise UserError(f"beyond {steady} tokens this model's rotary angles depend on the longest row; cut the rows")
    if any(isinstance(model.network.get_submodule(part), nn.Embedding) for part in model.family.inputs):
        limit = model.network.config.max_position_embeddings
        if longest > limit:
            raise UserError(f"a row has {longest} tokens, the model has positions for {limit}; cut the row")


def runtime_of(model: CausalModel, *, bf16: bool) -> Runtime:
    """The model's device, and how it multiplies; quantised weights are named, because their kernels differ."""
    held: FrozenWeights = "whole"
    if getattr(model.network, "is_loaded_in_4bit", False):
        held = "nf4"
    elif getattr(model.network, "is_loaded_in_8bit", False):
        held = "int8"
    return Runtime(model.device, torch.bfloat16 if bf16 else torch.float32, "as asked", held)


def read_rows(dataset: Rows, vocabulary: int) -> tuple[list[Example], list[Tensor]]:
    """The tokens of every row without padding, and their labels; a ``UserError`` says which row cannot be used."""
    if isinstance(dataset, Mapping) or not hasattr(dataset, "__len__"):
        raise UserError(f"{type(dataset).__name__} is not a list of rows; give one split, [{{'input_ids': [...]}}]")
    rows = [_tokens(dataset[number], f"row {number}", vocabulary) for number in range(len(dataset))]
    if not rows:
        raise UserError("the dataset is empty")
    return [Example("", None, "", "", tuple(ids.tolist()), ()) for ids, _ in rows], [labels for _, labels in rows]


def _tokens(row: Mapping[str, Any], name: str, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a row, [T] each."""
    if "input_ids" not in row:
        raise UserError(f"{name}: no input_ids; tokenise the dataset first")
    if packed := [column for column in _PACKED if column in row]:
        raise UserError(f"{name}: it has {packed[0]}; give one example per row, passes are packed anyway")
    alike = f"{name}: input_ids, attention_mask and labels are not three lists of whole numbers of one length"
    try:
        ids = torch.as_tensor(row["input_ids"])
        labels = torch.as_tensor(row.get("labels", ids))
        kept = torch.as_tensor(row.get("attention_mask", torch.ones_like(ids))).bool()
    except (RuntimeError, TypeError, ValueError):
        raise UserError(alike) from None
    if not ids.shape == labels.shape == kept.shape or ids.ndim != 1 or (len(ids) and ids.is_floating_point()):
        raise UserError(alike)
    if kept.diff().sum() > 1 + bool(len(kept) and not kept[0]):
        raise UserError(f"{name}: attention_mask leaves out tokens between others; padding must be at the ends")
    ids, labels = ids[kept], labels[kept]
    given = torch.cat([ids, labels[labels != IGNORED]])
    if not len(ids) or not 0 <= int(given.min()) <= int(given.max()) < vocabulary:
        raise UserError(f"{name}: it needs one token at least, and ids below {vocabulary} (labels too, or {IGNORED})")
    return ids, labels
