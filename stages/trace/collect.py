"""One streaming forward pass: answer positions only, memory of a batch and a shard, resumable shards."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from salf.engine.answers import Embeddings
from salf.engine.batches import Batch, Example, Rows, inference_batches, stream_examples, stretches
from salf.engine.models.adapter import CausalModel
from salf.engine.models.attention import Beginning, Packing
from salf.engine.models.walk import run_to_answers, walk, walk_beginning
from salf.engine.progress import Advance, progress
from salf.engine.runtime import Runtime
from salf.errors import UserError
from salf.files import replacing_file, require, sealed_file
from stages.common.params import Trace
from stages.trace.basis import Affine, deviations, losses, semantic_bases

SPLIT: Final = "train"
SHARD_EXAMPLES: Final = 128
_STATES: Final = 4096  # latent states that are measured at a time: few calls, and memory that depth does not move


@dataclass(frozen=True)
class Sample:
    """A random sample of n examples, by their rows: a few bytes an example, whatever the examples hold."""

    rows: Rows  # in the prepared split, ascending, [n]
    with_losses: NDArray[np.bool_]  # which of them also get losses, [n]
    tokens: tuple[int, ...]  # their distinct answer tokens, ascending
    positions: int  # number of their answer positions that are traced


def draw_sample(prepared: Path, params: Trace) -> Sample:
    """Draw ``trace.sample`` examples of the training split, and among them ``trace.losses`` that also get losses."""
    count = pq.read_metadata(require(prepared / f"{SPLIT}.parquet", made_by="prepare")).num_rows
    drawn = np.random.default_rng(params.seed).permutation(count)[: params.sample]
    order = drawn.argsort()
    rows, with_losses = drawn[order], order < (len(drawn) if params.losses is None else params.losses)
    distinct, positions = set[int](), 0
    for table in stretches(prepared, SPLIT, ["answer_ids"], rows):
        answers = table.column("answer_ids")
        positions += sum(len(traced_positions(length, params)) for length in answers.value_lengths().to_pylist())
        distinct.update(pc.unique(answers.flatten()).to_pylist())
    return Sample(rows, with_losses, tuple(sorted(distinct)), positions)


def traced_positions(answers: int, params: Trace, row: int = 0) -> NDArray[np.int64]:
    """The traced answer positions of an example, ascending: ``trace.positions`` of them, drawn by its row."""
    most = params.positions
    if most is None or answers <= most:
        return np.arange(answers)
    return np.sort(np.random.default_rng([params.seed, row]).choice(answers, most, replace=False))


@dataclass(frozen=True)
class Tracer:
    """The model, bases and precision that trace every batch."""

    model: CausalModel
    runtime: Runtime
    params: Trace
    tokens: Tensor  # the distinct answer tokens, ascending, [n]
    bases: Tensor  # the basis of each, [n, H]
    folded: Affine | None  # the final norm's gain and shift, if they are in the bases
    shared: int  # tokens of the shared prefix of all prompts
    beginning: Beginning | None  # that prefix, run through all layers

    @classmethod
    @torch.no_grad()
    def prepare(
        cls, model: CausalModel, runtime: Runtime, params: Trace, tokens: Sequence[int], shared: Sequence[int]
    ) -> Self:
        """Solve the bases of the distinct answer tokens and run the shared prefix's tokens once."""
        weight: Tensor = model.head.weight
        bias: Tensor | None = model.head.bias
        folded = Affine.of(model.norm, weight) if params.basis == "head-and-norm" else None
        if folded:
            weight, bias = folded.folded(weight, bias)
        bases = semantic_bases(weight, bias, tokens).float().to(model.device)
        with runtime.autocast():
            beginning = walk_beginning(model, Embeddings.after(model, shared).beginning(), 0, model.depth)
        distinct = torch.tensor(list(tokens), device=model.device)
        return cls(model, runtime, params, distinct, bases, folded, len(shared), beginning)

    @torch.no_grad()
    def trace(self, batch: Batch, with_losses: bool) -> tuple[Tensor, Tensor]:
        """Deviations and losses of the batch's M answer positions, [M, L+1] each; losses that are not wanted are NaN.

        The states are measured several spaces at a time, so that nothing but their choice is added to each
        layer, and the results stay on the device: the shard waits for them once.
        """
        batch = batch.to(self.model.device)
        outputs = self.bases[torch.searchsorted(self.tokens, batch.targets)]
        inputs = self.model.embedding.weight[batch.ids[batch.answers]].float()
        at_once = max(1, _STATES // len(batch.answers))
        deviation: list[Tensor] = []
        loss: list[Tensor] = []
        with self.runtime.autocast():
            spaces = self._answer_states(batch, Packing.of(batch.lengths, self.model.device, walked=self.beginning))
            while some := list(islice(spaces, at_once)):
                raw = torch.stack(some)
                normed = self.model.norm(raw)
                targets = outputs
                if self.params.target == "virtual":
                    # The virtual transition of the paper's first version: from the embedding of the token that
                    # predicts (the input-side basis) to s_y, shares k/L of the way, [K, M, H].
                    depths = torch.arange(len(deviation), len(deviation) + len(some), device=raw.device)
                    targets = torch.lerp(inputs, outputs, (depths / self.model.depth)[:, None, None])
                compared = raw if self.params.space == "raw" else normed
                if self.folded and self.params.space == "normed":
                    compared = self.folded.undone(normed)
                deviation += deviations(compared, targets)
                if with_losses:
                    tokens = batch.targets.repeat(len(some))
                    loss += losses(self.model.read, normed.flatten(0, 1), tokens).view(len(some), -1)
        found = torch.stack(deviation, dim=1)
        return found, torch.stack(loss, dim=1) if with_losses else torch.full_like(found, torch.nan)

    def _answer_states(self, batch: Batch, packing: Packing) -> Iterator[Tensor]:
        """The spaces 0..L at the answer positions, [M, H] each; of the last layer only these rows are computed."""
        states = self.model.embed(batch.ids, batch.positions)
        yield states[batch.answers]
        last = self.model.depth - 1
        for space in walk(self.model, states, 0, last, packing):
            states = space
            yield states[batch.answers]
        yield run_to_answers(self.model, states, last, packing, batch.answers)


class Shard(NamedTuple):
    """A part of the sample that is traced and written at one go."""

    file: Path  # in unfinished work its name gets a checksum
    rows: Rows  # of the prepared split, ascending, [n]
    with_losses: NDArray[np.bool_]  # which of them also get losses, [n]


def shards(sample: Sample, folder: Path) -> list[Shard]:
    """The sample in shards of :data:`SHARD_EXAMPLES`, in order."""
    parts = [slice(start, start + SHARD_EXAMPLES) for start in range(0, len(sample.rows), SHARD_EXAMPLES)]
    return [
        Shard(folder / f"part-{number:05d}.parquet", sample.rows[part], sample.with_losses[part])
        for number, part in enumerate(parts)
    ]


def collect(tracer: Tracer, prepared: Path, sample: Sample, facts: dict[str, Any], folder: Path) -> None:
    """Trace a sample into Parquet shards in ``folder``; shards that are already there are kept."""
    schema = _schema(tracer.model.depth, facts)
    absent = [shard for shard in shards(sample, folder) if sealed_file(shard.file) is None]
    there = len(sample.rows) - sum(len(shard.rows) for shard in absent)
    wanted = np.concatenate([shard.rows for shard in absent]) if absent else sample.rows[:0]
    examples = stream_examples(prepared, SPLIT, wanted)
    with progress("tracing", len(sample.rows), "examples") as advance:
        if there:
            print(f"resumes from example {there} of {len(sample.rows)}", flush=True)
            advance(there, "already traced")
        for shard in absent:
            _write_shard(tracer, list(islice(examples, len(shard.rows))), shard, schema, advance)


def _schema(layers: int, facts: dict[str, Any]) -> pa.Schema:
    """The columns of a trace; grain: one row per answer position; key: example_id, position."""
    text, number, curve = pa.string(), pa.int32(), pa.list_(pa.float32(), layers + 1)
    fields = {"example_id": text, "split": text, "position": number, "token_id": number, "label": text}
    metadata = {b"salf": json.dumps(facts, sort_keys=True).encode()}
    return pa.schema({**fields, "deviation": curve, "loss": curve}, metadata)


def _write_shard(
    tracer: Tracer, examples: Sequence[Example], shard: Shard, schema: pa.Schema, advance: Advance
) -> None:
    """Trace a shard's examples into its file, which is there whole or not at all; by example and position."""
    of_example, position, deviation, loss = _traced(tracer, examples, shard, advance)
    for values in (deviation, loss[shard.with_losses[of_example]]):
        if not np.isfinite(values).all():
            space = int(np.argwhere(~np.isfinite(values))[0, 1])
            raise UserError(f"the trace is not a number at space {space}; set device.dtype to float32")
    chosen = [examples[i] for i in of_example]
    spaces = deviation.shape[1]
    columns = {
        "example_id": [example.example_id for example in chosen],
        "split": [SPLIT] * len(chosen),
        "position": position,
        "token_id": [example.answer_ids[at] for example, at in zip(chosen, position, strict=True)],
        "label": [example.label for example in chosen],
        "deviation": pa.FixedSizeListArray.from_arrays(deviation.ravel(), spaces),
        "loss": pa.FixedSizeListArray.from_arrays(loss.ravel(), spaces, mask=pa.array(np.isnan(loss).all(axis=1))),
    }
    with replacing_file(shard.file, sealed=True) as aside:
        pq.write_table(pa.table(columns, schema=schema), aside, compression="zstd")


def _traced(tracer: Tracer, examples: Sequence[Example], shard: Shard, advance: Advance) -> list[NDArray[Any]]:
    """The N answer positions of a shard: example [N], place in its answer [N], deviation and loss [N, L+1].

    A loss that is not traced is NaN.
    """
    kept = [
        torch.from_numpy(traced_positions(len(example.answer_ids), tracer.params, int(row)))
        for example, row in zip(examples, shard.rows, strict=True)
    ]
    lengths = [len(example.prompt_ids) + len(example.answer_ids) - 1 - tracer.shared for example in examples]
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    # Examples with and without losses go in batches of their own: a loss costs the whole head at every space.
    for wants_losses in (True, False):
        group = np.flatnonzero(shard.with_losses == wants_losses).tolist()
        for picks in inference_batches([lengths[i] for i in group], tracer.params.batch_tokens):
            chosen = [group[i] for i in picks]
            batch = Batch.of(examples, chosen, tracer.shared).at([kept[i] for i in chosen])
            found.append((batch.index[batch.rows], batch.answer_index, *tracer.trace(batch, wants_losses)))
            advance(len(picks), "")
    of_example, position, *measured = (torch.cat(each).cpu().numpy() for each in zip(*found, strict=True))
    order = np.lexsort((position, of_example))
    return [values[order] for values in (of_example, position, *measured)]
