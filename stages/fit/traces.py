"""Reads traces part by part: one mean curve per example, whatever the number of answer positions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from salf.errors import UserError, reading
from salf.evidence import Traced
from salf.files import require, sha256_folder
from salf.laws import Array
from salf.plan_records import Positive
from salf.selectors import Quantity

_SMALLEST: Final = -1e-5  # a deviation or loss of zero may come out slightly negative in float32
_AGAIN: Final = "make the traces again (dvc repro --force trace)"


class _Origin(Traced, extra="allow"):
    """The metadata of a part."""

    layers: Positive


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
    # The sums of each example's curves; the last number counts its positions, [L+2].
    sums: dict[Quantity, dict[str, Array]] = {name: {} for name in get_args(Quantity)}
    for part in parts:
        _add(part, sums, origins[0].layers + 1)
    stacked = {name: np.array([totals[one] for one in sorted(totals)]) for name, totals in sums.items() if totals}
    if "deviation" not in stacked:
        raise UserError(f"{folder}: holds no traced position; check trace.sample and the prepared training split")
    return Traces(
        origins[0].layers,
        examples=len(stacked["deviation"]),
        positions=round(stacked["deviation"][:, -1].sum()),
        curves={name: total[:, :-1] / total[:, -1:] for name, total in stacked.items()},
        origin=origins[0],
        sha256=sha256_folder(folder),
    )


def _origin(part: Path) -> _Origin:
    with reading(part, f"not a trace, or damaged; {_AGAIN}"):
        return _Origin.model_validate_json((pq.read_schema(part).metadata or {})[b"salf"])


def _add(part: Path, sums: dict[Quantity, dict[str, Array]], spaces: int) -> None:
    """Add a part's curves to those of each example."""
    with reading(part, f"damaged; {_AGAIN}"):
        table = pq.read_table(part, columns=["example_id", *sums])
    for name, totals in sums.items():
        traced = table.filter(table.column(name).is_valid())
        if traced.num_rows:
            examples = traced.column("example_id").to_numpy()
            curves = _curves(traced, name, part, spaces)
            names, of_row = np.unique(examples, return_inverse=True)
            added = np.zeros((len(names), spaces + 1))
            np.add.at(added, of_row, np.column_stack([curves, np.ones(len(curves))]))
            for example, total in zip(names.tolist(), added, strict=True):
                totals[example] = totals.get(example, 0.0) + total


def _curves(traced: pa.Table, name: str, part: Path, spaces: int) -> Array:
    """A quantity of the traced rows, checked, [rows, L+1]."""
    with reading(part, f"{name} does not hold {spaces} numbers per row; {_AGAIN}"):
        column = traced.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        curves: Array = column.reshape(traced.num_rows, spaces).astype(np.float64)
    wrong = ~(curves >= _SMALLEST) | np.isinf(curves)
    if wrong.any():
        row, space = np.argwhere(wrong)[0]
        raise UserError(
            f"{part}: {name} {curves[row, space]} at space {space} of example {traced.column('example_id')[row]}: "
            f"neither NaN, infinite nor negative values can be fitted; try device.dtype: float32, then {_AGAIN}"
        )
    return curves
