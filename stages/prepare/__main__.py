"""Prepare the data: template, split, de-duplicate, tokenise."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stages.common.command import exit_code
from stages.common.params import Data, Prepare, Room
from stages.prepare.chat import ChatTemplate
from stages.prepare.examples import Filler, fill_rows
from stages.prepare.output import Prepared, print_summary, write_prepared
from stages.prepare.rows import SPLITS, TRAIN, Lost
from stages.prepare.sources import load_rows
from stages.prepare.splits import carve, check_usable, draw, named, of_labels, separate
from stages.prepare.tokens import PromptTokenizer, Tokenised, label_ids, tokenise
from stages.prepare.trial import try_out


class PrepareRoom(Room):
    """The groups of params.yaml that this stage reads."""

    data: Data
    prepare: Prepare


def main(argv: Sequence[str] | None = None) -> None:
    """Read the parameters and the base model's tokenizer, write the prepared folder."""
    arguments = _parser().parse_args(argv)
    room = PrepareRoom.load()
    try_out(arguments.base, chat=room.prepare.chat_template)
    chat = ChatTemplate.of(arguments.base) if room.prepare.chat_template else None
    filler, tokenizer = Filler(room.data, chat), PromptTokenizer(arguments.base, chat)
    loaded = load_rows(room.data, [*filler.columns, *filler.extra_columns])
    examples, refused = fill_rows(loaded, filler)
    carved = [split for split in SPLITS if split not in loaded.rows]
    source = loaded.identity
    del loaded  # the rows are examples now
    if room.data.examples:
        before, dropped = named(examples, room.data.examples), Lost()
        examples = before
    else:
        examples = carve(examples, room.data.limits, room.data.seed)
        before, dropped = separate(examples, room.prepare.near_duplicate)
        examples, unknown = draw(before, room.data)
        refused += unknown

    def check(labels: dict[str, list[str | None]]) -> None:
        check_usable(labels, carved, refused + dropped, filler.classes)

    check({name: [example.label for example in part] for name, part in examples.items()})
    labels = label_ids(tokenizer, examples[TRAIN]) if room.data.task == "classification" else None
    splits: dict[str, list[Tokenised]] = {}
    for name in SPLITS:  # train first: the others are asked about its labels
        part, unfit = of_labels(examples[name], labels or {None})
        splits[name], too_long = tokenise(tokenizer, part, labels, room.prepare.max_tokens)
        refused += Lost({(name, reason): count for reason, count in (unfit + too_long).items()})
        if labels and name == TRAIN:
            kept = {row.example.label for row in splits[TRAIN]}
            labels = {label: ids for label, ids in labels.items() if label in kept}
    check({name: [row.example.label for row in part] for name, part in splits.items()})
    made = Prepared(
        filler, tokenizer, room.prepare.max_tokens, source, before, splits, labels, dropped=dropped, refused=refused
    )
    print_summary(made, write_prepared(arguments.out, made), Console())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.prepare",
        description="Turn raw rows into prompts and answer tokens, split without leaks.",
        epilog="example: python -m stages.prepare --base data/base --out data/prepared",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder (its tokenizer is used)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
