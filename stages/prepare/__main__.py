"""Stage ``prepare``: template, split, de-duplicate, tokenise."""

import sys
from collections.abc import Sequence
from pathlib import Path

from salf.trial import tokenise_sample, try_out
from stages.common.command import BASE, exit_code, parser_of
from stages.common.params import Data, Prepare, Room
from stages.prepare.chat import ChatTemplate, render_sample
from stages.prepare.examples import Filler, fill_rows
from stages.prepare.output import Prepared, print_summary, write_prepared
from stages.prepare.rows import SPLITS, TRAIN, Lost
from stages.prepare.sources import load_rows
from stages.prepare.splits import carve, check_usable, draw, named, of_labels, separate
from stages.prepare.tokens import PromptTokenizer, Tokenised, blocks, label_ids, tokenise

_PARSER = parser_of(
    "prepare",
    "Turn raw rows into prompts and answer tokens, split without leaks.",
    {"base": BASE, "out": ("data/prepared", "the folder to write")},
)


class PrepareRoom(Room):
    """The groups of params.yaml that this stage reads."""

    data: Data
    prepare: Prepare


def main(argv: Sequence[str] | None = None) -> None:
    """Read the parameters and the base model's tokenizer, write the prepared folder."""
    arguments = _PARSER.parse_args(argv)
    made = _prepared(PrepareRoom.load(), arguments.base)
    print_summary(made, write_prepared(arguments.out, made))


def _prepared(room: PrepareRoom, base: Path) -> Prepared:
    data = room.data
    template = [(render_sample, ChatTemplate.file(base))] if room.prepare.chat_template else []
    try_out((tokenise_sample, base / "tokenizer.json"), *template)
    chat = ChatTemplate.of(base) if room.prepare.chat_template else None
    filler, tokenizer = Filler(data, chat), PromptTokenizer(base, chat)
    longest = data.text.block_tokens if filler.task.text else room.prepare.max_tokens
    loaded = load_rows(data, [*filler.columns, *filler.extra_columns])
    examples, refused = fill_rows(loaded, filler)
    carved, source = [split for split in SPLITS if split not in loaded.rows], loaded.identity
    del loaded  # the rows are examples now
    if data.examples:
        before = examples = named(examples, data.examples)
        dropped = Lost()
    else:
        before, dropped = separate(carve(examples, data.limits, data.seed), room.prepare.near_duplicate)
        examples, unknown = draw(before, data)
        refused += unknown
    check_usable(examples, carved, refused + dropped)
    labels = label_ids(tokenizer, examples[TRAIN]) if filler.task.labels else None
    splits: dict[str, list[Tokenised]] = {}
    for name, rows in examples.items():  # train first: rows of the others are kept if it has their label
        part, unfit = of_labels(name, rows, labels or {None})
        if filler.task.text:
            splits[name], lost = blocks(tokenizer, part, longest)
        else:
            splits[name], lost = tokenise(tokenizer, part, labels, longest)
        refused += unfit + Lost({(name, reason): count for reason, count in lost.items()})
        if labels and name == TRAIN:
            left = {row.example.label for row in splits[TRAIN]}
            labels = {label: ids for label, ids in labels.items() if label in left}
    kept = {name: [row.example for row in part] for name, part in splits.items()}
    check_usable(kept, carved, refused + dropped)
    return Prepared(filler, tokenizer, longest, source, before, splits, labels, dropped, refused)


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
