"""``reports/signals.csv``: a row per signal and space (0..L), or per signal and layer (1..L).

Columns: ``signal``, ``layer`` (the space's or layer's number) and ``value``, which is empty where the signal is not
defined. Signals, by the kind that measures them:

- ``block-influence``: ``block-influence`` of the layers;
- ``variability``: ``variability`` of the spaces;
- ``probe``: of the spaces ``probe`` and ``probe-pooled``, shares of held-out examples whose class is read off the
  state at the answer position and off the prompt's mean state, and ``probe-error``, the standard error of what the
  latter's best space is ahead;
- ``grad-norm``: ``grad-norm`` of the layers;
- ``spectrum``: ``spectrum`` of the layers.
"""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from salf.files import replacing_file, significant

COLUMNS: Final = ("signal", "layer", "value")
_DIGITS: Final = 8

# By name; a sequence of L+1 values is about the spaces 0..L, one of L about the layers 1..L.
Signals = Mapping[str, Sequence[float]]


def write_table(path: Path, signals: Signals, layers: int) -> None:
    """Write the signals of a model of so many layers; none gives the header alone."""
    with replacing_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_rows(signals, layers))


def _rows(signals: Signals, layers: int) -> Iterator[tuple[str, int, str]]:
    for name, values in signals.items():
        for number, value in enumerate(values, start=layers + 1 - len(values)):
            yield name, number, repr(significant(float(value), _DIGITS)) if math.isfinite(value) else ""
