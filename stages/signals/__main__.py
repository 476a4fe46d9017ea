"""Stage ``signals``: params, base model, prepared data → reports/signals.csv, reports/pilot.json."""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from salf.evidence import NO_PILOTS
from salf.files import replacing_file, significant, write_json
from salf.selectors import SIGNALS
from salf.settings import Device, Schedule
from stages.common.command import BASE, PREPARED, exit_code, parser_of
from stages.common.params import Pilot, Room, Signals

_DIGITS: Final = 8
_PARSER: Final = parser_of(
    "signals",
    f"Measure evidence for other selectors: the signals that signals.kinds names (of {', '.join(SIGNALS)}), and, if "
    "pilot.enabled is true, the loss of every boundary, predicted from a few small fine-tunes. Both are off by "
    "default. Pilots that were killed resume after the last finished one.",
    {
        "base": BASE,
        "prepared": PREPARED,
        "out": ("reports/signals.csv", "CSV to write: the signals"),
        "pilot": ("reports/pilot.json", "JSON to write: pilots, law, predictions, FLOPs"),
    },
)


class SignalsRoom(Room):
    """The parameters that this stage reads."""

    device: Device
    finetune: Schedule
    pilot: Pilot
    signals: Signals


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the signals and run the pilots that the parameters ask for; neither by default, and without torch."""
    args = _PARSER.parse_args(argv)
    params = SignalsRoom.load()
    if params.signals.kinds:
        from stages.signals.sample import measure

        columns, layers = measure(args.base, args.prepared, params.device, params.signals)
        write_table(args.out, columns, layers)
        print(f"{', '.join(columns)} of {layers} layers")
    else:
        write_table(args.out, {}, layers=0)
        print("no signals: signals.kinds is empty")
    if params.pilot.enabled:
        from stages.signals.pilots import run

        run(args.base, args.prepared, args.pilot, params.device, params.pilot, params.finetune)
    else:
        write_json(args.pilot, NO_PILOTS)
        print("no pilots: pilot.enabled is false")


def write_table(path: Path, columns: Mapping[str, Sequence[float]], layers: int) -> None:
    """Write a row per signal and space 0..L or layer 1..L, from columns [L+1] or [L]; empty where undefined."""
    with replacing_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("signal", "layer", "value"))
        for name, values in columns.items():
            for number, value in enumerate(values, start=layers + 1 - len(values)):
                text = repr(significant(float(value), _DIGITS)) if math.isfinite(value) else ""
                writer.writerow((name, number, text))


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
