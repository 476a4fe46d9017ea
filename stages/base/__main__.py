"""Stage ``base``: params → source → data/base."""

import sys
from collections.abc import Sequence

from salf.files import replacing_folder
from stages.base.folder import write_folder
from stages.base.sources import open_source
from stages.common.command import exit_code, parser_of
from stages.common.params import Model, Room

_PARSER = parser_of(
    "base",
    "Find or download the base model, verify its hash, and write it with one shard per layer.",
    {"out": ("data/base", "the model folder to write")},
)


class BaseRoom(Room):
    """The groups that this stage reads."""

    model: Model


def main(argv: Sequence[str] | None = None) -> None:
    """Bring the model in and shard it by layer."""
    args = _PARSER.parse_args(argv)
    params = BaseRoom.load().model

    source = open_source(params)
    with replacing_folder(args.out) as folder:
        record = write_folder(source, params.source, folder)
    for note in source.notes:
        print(f"{record.name}: {note}")
    sizes = record.parameters
    total = sizes.embedding + sum(sizes.per_layer) + sizes.norm + sizes.head
    print(f"{record.name}: {record.layers} layers, {total:,} parameters; {record.origin}")


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
