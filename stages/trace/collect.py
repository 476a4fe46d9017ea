"""One streaming forward pass: answer positions only, O(batch) memory, resumable shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stages.common.artifacts import replacing_file
from stages.common.batches import Batch, Example, inference_batches
from stages.common.command import UserError
from stages.common.models.adapter import CausalModel
from stages.common.models.walk import Beginning, behind, embed, walk, walk_beginning
from stages.common.params import Trace
from stages.common.progress import Advance, progress
from stages.common.runtime import Runtime
from stages.trace.basis import semantic_bases
from stages.trace.deviation import deviations, losses, virtual_targets

SHARD_EXAMPLES: Final = 128


@dataclass(frozen=True)
class Tracer:
    """What every batch is traced with.

    Attributes:
        model: the model.
        runtime: device and precision.
        params: the ``trace`` group.
        bases: answer token → its basis, [H].
        shared: tokens of the beginning that all prompts share.
        beginning: that beginning, walked through all layers.
    """

    model: CausalModel
    runtime: Runtime
    params: Trace
    bases: dict[int, Tensor]
    shared: int
    beginning: Beginning | None

    @classmethod
    @torch.no_grad()
    def prepare(
        cls, model: CausalModel, runtime: Runtime, params: Trace, examples: Sequence[Example], shared: int
    ) -> "Tracer":
        """Solve the bases of all distinct answer tokens and walk the shared beginning once."""
        tokens = sorted({token for example in examples for token in example.answer_ids})
        solved = semantic_bases(model.head.weight, model.head.bias, tokens).float().to(model.device)
        ids = torch.tensor(examples[0].prompt_ids[:shared], device=model.device)
        with runtime.autocast():
            beginning = walk_beginning(model, embed(model, ids), 0, model.depth) if shared else None
        return cls(model, runtime, params, dict(zip(tokens, solved, strict=True)), shared, beginning)

    @torch.no_grad()
    def trace(self, batch: Batch, with_losses: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Deviations and losses of the batch's M answer positions, [M, L+1] each (losses where asked)."""
        batch = batch.to(self.model.device)
        outputs = torch.stack([self.bases[int(token)] for token in batch.targets])
        inputs = self.model.embedding.weight[batch.ids[batch.answers]]
        deviation, loss = [], []
        with self.runtime.autocast():
            states = embed(self.model, batch.ids)
            packing = behind(batch.lengths, self.model.device, self.beginning)
            spaces = walk(self.model, states, 0, self.model.depth, packing)
            for number, space in enumerate(chain([states], spaces)):
                raw = space[batch.answers]
                normed = self.model.norm(raw)
                targets = outputs
                if self.params.target == "virtual":
                    targets = virtual_targets(inputs, outputs, number / self.model.depth)
                deviation.append(deviations(normed if self.params.space == "normed" else raw, targets))
                if with_losses:
                    loss.append(losses(self.model.head, normed, batch.targets))
        columns = torch.stack(deviation, dim=1).cpu().numpy()
        return columns, torch.stack(loss, dim=1).cpu().numpy() if with_losses else None


def sample_examples(examples: Sequence[Example], params: Trace) -> tuple[list[Example], int]:
    """The traced examples in a seeded random order, and how many of the first also get losses."""
    order = np.random.default_rng(params.seed).permutation(len(examples))
    chosen = [examples[i] for i in order[: params.sample]]
    with_losses = len(chosen) if params.losses is None else min(params.losses, len(chosen))
    return chosen, with_losses


def collect(tracer: Tracer, examples: Sequence[Example], with_losses: int, facts: dict[str, Any], folder: Path) -> int:
    """Trace ``examples`` into parquet shards in ``folder``; shards that are already there are kept.

    Args:
        tracer: from :meth:`Tracer.prepare`.
        examples: in the order of :func:`sample_examples`.
        with_losses: the first so many also get losses.
        facts: the Parquet schema's metadata.
        folder: where the shards go.

    Returns:
        The number of answer positions traced.

    Raises:
        UserError: a state is not finite.
    """
    schema = trace_schema(tracer.model.depth, facts)
    positions = 0
    with progress("tracing", len(examples), "examples") as advance:
        for number, start in enumerate(range(0, len(examples), SHARD_EXAMPLES)):
            part = folder / f"part-{number:05d}.parquet"
            chosen = examples[start : start + SHARD_EXAMPLES]
            positions += sum(len(example.answer_ids) for example in chosen)
            if part.exists():
                advance(len(chosen), "already traced")
                continue
            rows = _trace_shard(tracer, chosen, max(0, with_losses - start), advance)
            with replacing_file(part) as aside:
                pq.write_table(pa.Table.from_pylist(rows, schema), aside, compression="zstd")
    return positions


def trace_schema(layers: int, facts: dict[str, Any]) -> pa.Schema:
    """The columns of a trace; grain: one row per answer position; key: example_id, position."""
    curve = pa.list_(pa.float32(), layers + 1)
    fields = [
        pa.field("example_id", pa.string()),
        pa.field("split", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("token_id", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("deviation", curve),
        pa.field("loss", curve),
    ]
    return pa.schema(fields, metadata={b"salf": json.dumps(facts, sort_keys=True).encode()})


def _trace_shard(
    tracer: Tracer, examples: Sequence[Example], with_losses: int, advance: Advance
) -> list[dict[str, Any]]:
    rows: list[list[dict[str, Any]]] = [[] for _ in examples]
    lengths = [len(example.inputs) - tracer.shared for example in examples]
    # Examples with and without losses go in batches of their own: a loss costs the whole head at every space.
    groups = [list(range(with_losses))[: len(examples)], list(range(with_losses, len(examples)))]
    for wants_losses, group in zip((True, False), groups, strict=True):
        for picks in inference_batches([lengths[i] for i in group], tracer.params.batch_tokens):
            index = [group[i] for i in picks]
            batch = Batch.of(examples, index, tracer.shared)
            deviation, loss = tracer.trace(batch, wants_losses)
            _require_finite(deviation, loss)
            for n, (row, position) in enumerate(zip(batch.rows.tolist(), batch.answer_index.tolist(), strict=True)):
                example = examples[index[row]]
                rows[index[row]].append(
                    {
                        "example_id": example.example_id,
                        "split": "train",
                        "position": position,
                        "token_id": example.answer_ids[position],
                        "label": example.label,
                        "deviation": deviation[n],
                        "loss": None if loss is None else loss[n],
                    }
                )
            advance(len(index), "")
    return [row for of_example in rows for row in of_example]


def _require_finite(*columns: np.ndarray | None) -> None:
    for values in columns:
        if values is not None and not np.isfinite(values).all():
            space = int(np.argwhere(~np.isfinite(values))[0, 1])
            raise UserError(
                f"the trace is not a number at space {space}: the model overflows in this precision; "
                "set device.dtype to float32"
            )
