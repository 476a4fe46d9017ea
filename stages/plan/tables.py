"""Reads the tables that a plan rests on: the gain of every layer, and rival rules' signals."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, get_args

from salf.errors import UserError
from salf.files import require
from salf.settings import GainName, Quantity
from stages.plan.evidence import Gains, LayerGain, Signal

_GAIN_COLUMNS: Final = {"quantity", "gain", "layer", "value", "low", "high", "win_share", "embedding_step"}
_SIGNAL_COLUMNS: Final = {"signal", "layer", "value"}


def read_gains(path: Path, layers: int) -> Gains:
    """Read the gains of the layers that may be chosen out of 1..layers; undefined ones are left out.

    Raises:
        UserError: the file is missing or damaged, or of a deeper model.
    """
    table: dict[tuple[Quantity, GainName], list[LayerGain]] = defaultdict(list)
    for where, row in _rows(path, _GAIN_COLUMNS, made_by="fit"):
        if row["gain"] not in get_args(GainName) or row["quantity"] not in get_args(Quantity):
            raise UserError(f"{where}: unknown gain {row['gain']} of {row['quantity']}")
        gain = _layer_gain(row, where, layers)
        eligible = row["embedding_step"].lower() != "true" and gain.layer < layers
        if eligible and math.isfinite(gain.value):
            table[row["quantity"], row["gain"]].append(gain)  # type: ignore[index]  # checked above
    return {key: tuple(sorted(gains, key=lambda gain: gain.layer)) for key, gains in table.items()}


def _layer_gain(row: Mapping[str, str], where: str, layers: int) -> LayerGain:
    try:
        value, low, high = (float(row[name] or "nan") for name in ("value", "low", "high"))
        gain = LayerGain(int(row["layer"]), value, low, high, float(row["win_share"] or 0))
    except ValueError as error:
        raise UserError(f"{where}: {error}; run again: dvc repro fit") from None
    if not 1 <= gain.layer <= layers:
        raise UserError(f"{where}: layer {gain.layer}, the base model has {layers}; run again: dvc repro fit")
    return gain


def read_signals(path: Path, layers: int) -> dict[str, Signal]:
    """Read the signals of a model of so many layers; a table of its header alone has none.

    Raises:
        UserError: the file is missing or damaged, or of another model.
    """
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for where, row in _rows(path, _SIGNAL_COLUMNS, made_by="signals"):
        try:
            values[row["signal"]][int(row["layer"])] = float(row["value"] or "nan")
        except ValueError as error:
            raise UserError(f"{where}: {error}; run again: dvc repro signals") from None
    for name, of_layers in values.items():
        if set(of_layers) | {0} != set(range(layers + 1)):
            raise UserError(f"{path}: {name} is not about {layers} layers; run again: dvc repro signals")
    return {name: tuple(of.get(number, math.nan) for number in range(layers + 1)) for name, of in values.items()}


def _rows(path: Path, columns: set[str], made_by: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table, each with where it stands."""
    with require(path, made_by).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := columns - set(reader.fieldnames or ()):
            raise UserError(f"{path}: no column {', '.join(sorted(missing))}; run again: dvc repro {made_by}")
        for row in reader:
            yield f"{path}: line {reader.line_num}", row
