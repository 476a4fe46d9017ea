"""Which examples are traced, and what has to be known of them before the first forward pass."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from salf.engine.batches import Rows, stretches
from salf.files import require
from stages.common.params import Trace

SPLIT = "train"


@dataclass(frozen=True)
class Sample:
    """A random sample of n examples, by their rows: a few bytes an example, whatever the examples hold.

    Attributes:
        rows: the examples' rows in the prepared split, ascending, [n].
        with_losses: which of them also get losses, [n].
        tokens: their distinct answer tokens, ascending.
        positions: their answer positions.
    """

    rows: Rows
    with_losses: NDArray[np.bool_]
    tokens: tuple[int, ...]
    positions: int


def draw_sample(prepared: Path, params: Trace) -> Sample:
    """Draw ``trace.sample`` examples of the training split, and among them ``trace.losses`` that also get losses.

    Both are a random order's first ones, taken in the order of the file, so that the split is read once from
    front to back.

    Raises:
        UserError: the split is missing.
    """
    count = pq.read_metadata(require(prepared / f"{SPLIT}.parquet", made_by="prepare")).num_rows
    drawn = np.random.default_rng(params.seed).permutation(count)[: params.sample]
    order = drawn.argsort()
    with_losses = order < (len(drawn) if params.losses is None else params.losses)
    rows = drawn[order]
    return Sample(rows, with_losses, *_answer_tokens(prepared, rows))


def _answer_tokens(prepared: Path, rows: Rows) -> tuple[tuple[int, ...], int]:
    """The distinct answer tokens of chosen rows, ascending, and how many answer tokens there are in all."""
    distinct, positions = set[int](), 0
    for table in stretches(prepared, SPLIT, ["answer_ids"], rows):
        tokens = table.column("answer_ids").flatten()
        positions += len(tokens)
        distinct.update(pc.unique(tokens).to_pylist())
    return tuple(sorted(distinct)), positions
