"""Stage ``signals``: params, base model, training split → reports/signals.csv."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from salf.settings import Device
from stages.common.command import exit_code
from stages.common.params import Room, Signals
from stages.signals.table import write_table


class SignalsRoom(Room):
    """The groups that this stage reads."""

    device: Device
    signals: Signals


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the signals that are asked for; none by default, and then no model is opened."""
    args = _parser().parse_args(argv)
    params = SignalsRoom.load()
    if not params.signals.kinds:
        write_table(args.out, {}, layers=0)
        print("no signals: signals.kinds is empty")
        return
    from stages.signals.measure import measure  # loads torch, which an empty list does not need

    signals, layers = measure(args.base, args.prepared, params.device, params.signals)
    write_table(args.out, signals, layers)
    print(f"{', '.join(signals)} of {layers} layers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.signals",
        description="Measure evidence for other selectors: block influence, hidden-state variability, probes, "
        "gradient norms, the weights' spectrum; as many as signals.kinds names.",
        epilog="example: python -m stages.signals --base data/base --prepared data/prepared --out reports/signals.csv",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared data's folder")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
