"""Stage ``base``: params → source → data/base."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from salf.families import family_of
from salf.files import replacing_folder
from salf.records import write_record
from stages.base.identity import identity
from stages.base.shard import write_folder
from stages.base.sources import open_source
from stages.common.command import exit_code
from stages.common.params import Model, Room


class BaseRoom(Room):
    """The groups that this stage reads."""

    model: Model


def main(argv: Sequence[str] | None = None) -> None:
    """Bring the model in and shard it by layer."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.base",
        description="Find or download the base model, verify its hash, and write it with one shard per layer.",
        epilog="example: python -m stages.base --out data/base",
    )
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    args = parser.parse_args(argv)
    params = BaseRoom.load().model

    with open_source(params) as source, replacing_folder(args.out) as folder:
        family = family_of(source.config["model_type"], source.tensors)
        sizes = write_folder(source, family, folder)
        facts = identity(source, params.source, family, sizes, folder)
        write_record(folder / "base.json", facts)
    for note in source.notes:
        print(f"{facts.name}: {note}")
    print(f"{facts.name}: {facts.layers} layers, {sum(sizes.values()):,} parameters; {facts.origin}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
