"""Perplexity of the base and of fine-tuned models on texts of another kind: what was forgotten."""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from salf.answer_folder import is_answer_side
from salf.engine.perplexity import perplexity, text_examples
from salf.engine.runtime import choose_runtime
from salf.errors import UserError, reading
from salf.files import require, significant, write_json
from stages.common.command import exit_code
from stages.common.params import load_params
from stages.evaluate.predict import open_trained, open_twin

_MOST_DOCUMENTS: Final = 1000  # of a file that are looked at


def main(argv: Sequence[str] | None = None) -> None:
    """Read the same blocks of every text with the base and with every model."""
    args = _parser().parse_args(argv)
    runtime = choose_runtime(load_params().device)
    texts = {}
    for name, path in (text.split("=", 1) for text in args.texts):
        texts[name] = text_examples(args.base, documents(Path(path)), args.tokens)[: args.blocks]
    folders = {"base": require(args.base, "base"), **{one.name: require(one, "finetune") for one in args.models}}
    found: dict[str, dict[str, dict[str, float | int]]] = {}
    for folder_name, folder in folders.items():
        if is_answer_side(folder):  # with its trained weights at every position
            model = open_twin(folder, args.base, runtime)[1]
        else:
            model = open_trained(folder, args.base, runtime)
        found[folder_name] = {}
        for name, blocks in texts.items():
            measured, tokens = perplexity(model, runtime, blocks)
            found[folder_name][name] = {"perplexity": significant(measured), "tokens": tokens}
            print(f"{folder_name}, {name}: perplexity {measured:.3f}")
    write_json(args.out, {"schema": 1, "models": found})


def documents(path: Path) -> list[str]:
    """The documents of a text file (one) or of a file of JSON lines (their ``text``)."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    with reading(path, "no text in UTF-8, or no JSON lines with a text"), path.open(encoding="utf-8") as file:
        if path.suffix != ".jsonl":
            return [file.read()]
        return [json.loads(line)["text"] for line in islice(file, _MOST_DOCUMENTS)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate.texts",
        description=f"{__doc__} An answer-side model reads them with its trained weights at every position.",
        epilog="example: python -m stages.evaluate.texts --base data/base --models data/models/half-seed1 "
        "--texts wikitext2=../shared/data/wikitext2_valid_test/test.txt --out reports/texts.json",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders of fine-tuned models")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE", help="txt, or jsonl with a text")
    parser.add_argument("--blocks", type=int, default=40, help="blocks to read of each text (default: 40)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a block (default: 256)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write: the perplexities")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main))
