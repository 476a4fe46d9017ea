"""Reads traces as they stream by: one mean curve per example, whatever the number of answer positions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from salf.errors import UserError
from salf.files import require, sha256_folder
from salf.laws import Array

QUANTITIES: Final = ("deviation", "loss")
_SMALLEST: Final = -1e-5  # a deviation or loss of zero may come out slightly negative in float32
_AGAIN: Final = "make the traces again: dvc repro --force trace"


@dataclass(frozen=True)
class Traces:
    """All traces of a folder.

    Attributes:
        layers: L.
        examples: how many were traced.
        positions: answer positions of all of them.
        curves: for each traced quantity the mean curve of every example over its positions [n, L+1], in the
            order of the example ids.
        origin: what the tracing stage wrote about the model, the space, the target and the precision.
        sha256: of the folder.
    """

    layers: int
    examples: int
    positions: int
    curves: dict[str, Array]
    origin: dict[str, Any]
    sha256: str


def read_traces(folder: Path) -> Traces:
    """Read every ``part-*.parquet`` of a folder.

    Raises:
        UserError: no parts, no rows, damaged or mixed parts, or values that are no deviation or loss.
    """
    parts = sorted(require(folder, "trace").glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{folder}: no part-*.parquet in it; {_AGAIN}")
    origins = [_origin(part) for part in parts]
    for part, origin in zip(parts, origins, strict=True):
        if origin != origins[0]:
            raise UserError(f"{part}: traced from another model or otherwise than {parts[0].name}; {_AGAIN}")
    layers = int(origins[0]["layers"])
    sums = {name: _Sums(layers + 1) for name in QUANTITIES}
    for part in parts:
        for batch in _batches(part):
            for name in QUANTITIES:
                _add(sums[name], batch, name, part)
    if not sums["deviation"].rows:
        raise UserError(f"{folder}: holds no traced position; check trace.sample and the prepared training split")
    return Traces(
        layers,
        examples=len(sums["deviation"].totals),
        positions=sums["deviation"].rows,
        curves={name: each.means() for name, each in sums.items() if each.rows},
        origin=origins[0],
        sha256=sha256_folder(folder),
    )


@dataclass
class _Sums:
    """Running sums over positions, by example: the sum of the curves and, last, how many they are."""

    spaces: int
    rows: int = 0
    totals: dict[str, Array] = field(default_factory=dict)

    def add(self, examples: Array, curves: Array) -> None:
        self.rows += len(curves)
        names, of_row = np.unique(examples, return_inverse=True)
        sums = np.zeros((len(names), self.spaces + 1))
        np.add.at(sums, of_row, np.column_stack([curves, np.ones(len(curves))]))
        for name, total in zip(names.tolist(), sums, strict=True):
            known = self.totals.get(name)
            self.totals[name] = total if known is None else known + total

    def means(self) -> Array:
        totals = np.array([self.totals[name] for name in sorted(self.totals)])
        return np.asarray(totals[:, :-1] / totals[:, -1:])


def _origin(part: Path) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(part).metadata or {}
        origin = json.loads(metadata[b"salf"])
        if int(origin["layers"]) < 1:
            raise ValueError("no layers")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{part}: not a trace, or damaged ({_line(error)}); {_AGAIN}") from None
    return dict(origin)


def _batches(part: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(part) as file:
            yield from file.iter_batches(columns=["example_id", *QUANTITIES])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{part}: damaged ({_line(error)}); {_AGAIN}") from None


def _add(sums: _Sums, batch: Any, name: str, part: Path) -> None:
    traced = batch.filter(batch.column(name).is_valid())
    if not traced.num_rows:
        return
    try:
        curves = traced.column(name).flatten().to_numpy(zero_copy_only=False)
        curves = curves.reshape(traced.num_rows, sums.spaces).astype(np.float64)
    except (AttributeError, ValueError, pa.ArrowException):
        raise UserError(f"{part}: {name} does not hold {sums.spaces} numbers per row; {_AGAIN}") from None
    examples = traced.column("example_id").to_numpy(zero_copy_only=False)
    wrong = ~(curves >= _SMALLEST) | np.isinf(curves)
    if wrong.any():
        row, space = np.argwhere(wrong)[0]
        raise UserError(
            f"{part}: {name} {curves[row, space]} at space {space} of example {examples[row]}: neither NaN, infinite"
            f" nor negative values can be fitted; try device.dtype: float32, then {_AGAIN}"
        )
    sums.add(examples, curves)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
