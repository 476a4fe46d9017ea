"""Reads traces part by part: one mean curve per example, whatever the number of answer positions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from salf.errors import UserError
from salf.evidence import Traced
from salf.files import require, sha256_folder
from salf.laws import Array
from salf.selectors import Quantity

_SMALLEST: Final = -1e-5  # a deviation or loss of zero may come out slightly negative in float32
_AGAIN: Final = "make the traces again: dvc repro --force trace"


@dataclass(frozen=True)
class Traces:
    """All traces of a folder: ``examples`` of ``positions`` answer positions in all."""

    layers: int
    examples: int
    positions: int
    curves: dict[Quantity, Array]  # mean of each example over its positions [n, L+1], by example id
    origin: Traced
    sha256: str


def read_traces(folder: Path) -> Traces:
    """Read every ``part-*.parquet`` of a folder."""
    parts = sorted(require(folder, "trace").glob("part-*.parquet"))
    if not parts:
        raise UserError(f"{folder}: no part-*.parquet in it; {_AGAIN}")
    origins = [_origin(part) for part in parts]
    for part, origin in zip(parts, origins, strict=True):
        if origin != origins[0]:
            raise UserError(f"{part}: traced from another model or with other settings than {parts[0].name}; {_AGAIN}")
    layers = int(origins[0]["layers"])
    sums: dict[Quantity, dict[str, Array]] = {name: {} for name in get_args(Quantity)}
    for part in parts:
        _add(part, sums, layers + 1)
    curves = {name: _means(totals) for name, totals in sums.items() if totals}
    if "deviation" not in curves:
        raise UserError(f"{folder}: holds no traced position; check trace.sample and the prepared training split")
    return Traces(
        layers,
        examples=len(sums["deviation"]),
        positions=round(sum(total[-1] for total in sums["deviation"].values())),
        curves=curves,
        origin=Traced.model_validate(origins[0]),
        sha256=sha256_folder(folder),
    )


def _origin(part: Path) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(part).metadata or {}
        origin = json.loads(metadata[b"salf"])
        if int(origin["layers"]) < 1:
            raise ValueError("no layers")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{part}: not a trace, or damaged ({_line(error)}); {_AGAIN}") from None
    return dict(origin)


def _add(part: Path, sums: dict[Quantity, dict[str, Array]], spaces: int) -> None:
    """Add a part's curves to those of each example; the last number of a sum counts its positions, [L+2]."""
    try:
        table = pq.read_table(part, columns=["example_id", *sums])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{part}: damaged ({_line(error)}); {_AGAIN}") from None
    for name, totals in sums.items():
        traced = table.filter(table.column(name).is_valid())
        if traced.num_rows:
            examples = traced.column("example_id").to_numpy()
            curves = _curves(traced, name, examples, part, spaces)
            names, of_row = np.unique(examples, return_inverse=True)
            added = np.zeros((len(names), spaces + 1))
            np.add.at(added, of_row, np.column_stack([curves, np.ones(len(curves))]))
            for example, total in zip(names.tolist(), added, strict=True):
                totals[example] = totals.get(example, 0.0) + total


def _curves(traced: pa.Table, name: str, examples: Any, part: Path, spaces: int) -> Array:
    """A quantity of the traced rows, checked, [rows, L+1]."""
    try:
        column = traced.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        curves: Array = column.reshape(traced.num_rows, spaces).astype(np.float64)
    except (AttributeError, ValueError, pa.ArrowException):
        raise UserError(f"{part}: {name} does not hold {spaces} numbers per row; {_AGAIN}") from None
    wrong = ~(curves >= _SMALLEST) | np.isinf(curves)
    if wrong.any():
        row, space = np.argwhere(wrong)[0]
        raise UserError(
            f"{part}: {name} {curves[row, space]} at space {space} of example {examples[row]}: neither NaN, infinite"
            f" nor negative values can be fitted; try device.dtype: float32, then {_AGAIN}"
        )
    return curves


def _means(totals: dict[str, Array]) -> Array:
    sums = np.array([totals[name] for name in sorted(totals)])
    return np.asarray(sums[:, :-1] / sums[:, -1:])


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
