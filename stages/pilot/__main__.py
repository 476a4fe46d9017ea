"""Stage ``pilot``: params, base, data → reports/pilot.json."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from salf.files import write_json
from salf.settings import Device, Schedule
from stages.common.command import exit_code
from stages.common.params import Pilot, Room
from stages.pilot.artifact import DISABLED


class PilotRoom(Room):
    """What this stage reads."""

    device: Device
    finetune: Schedule
    pilot: Pilot


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune a little at a few boundaries and predict every boundary's loss; where that is off, say so."""
    args = _arguments(argv)
    params = PilotRoom.load()
    if not params.pilot.enabled:
        write_json(args.out, DISABLED)
        print("no pilots: pilot.enabled is false")
        return
    from stages.pilot.run import run  # here, since it loads torch

    run(args.base, args.prepared, args.out, params.device, params.pilot, params.finetune)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.pilot",
        description="Run a few small fine-tunes and predict the loss of every boundary from them. Does nothing unless "
        "pilot.enabled is true. A killed run resumes after the last finished pilot.",
        epilog="example: python -m stages.pilot --base data/base --prepared data/prepared --out reports/pilot.json",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared data's folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write: pilots, law, predictions, FLOPs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(main))
