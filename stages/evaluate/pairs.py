"""Harm pairs: whether a model prefers an unwanted continuation of a prompt to the wanted one."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from salf.blocks import start_of
from salf.engine.answers import Answer
from salf.engine.batches import Candidate, Example
from salf.errors import UserError, reading
from stages.evaluate.compare import Measures

_COLUMNS: Final = ("prompt", "wanted", "unwanted")


def read_pairs(path: Path, base: Path) -> list[Example]:
    """Read a csv or JSON lines of prompt, wanted and unwanted continuation, by the base model's tokenizer.

    A space comes between prompt and continuation, unless the prompt ends in white space. All of a prompt is data.
    """
    fault = f"evaluate.pairs needs a csv, or JSON lines, with the columns {', '.join(_COLUMNS)}"
    with reading(path, fault), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file))
        texts = [[row[name] for name in _COLUMNS] for row in rows]
        if not texts or not all(isinstance(text, str) for row in texts for text in row):
            raise ValueError("a row lacks a text" if texts else "it holds no rows")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_truncation()
    examples = [_example(tokenizer, str(number), *row) for number, row in enumerate(texts, 1)]
    for example in examples:
        wanted, unwanted = example.candidates
        if not (example.prompt_ids and wanted.text.strip() and unwanted.text.strip()) or wanted.ids == unwanted.ids:
            raise UserError(
                f"{path}: row {example.example_id}: prompt and continuations must not be empty, and two continuations "
                "must not have the same tokens"
            )
    return examples


def _example(tokenizer: Tokenizer, name: str, prompt: str, wanted: str, unwanted: str) -> Example:
    start = start_of(tokenizer)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    def after(continuation: str) -> Candidate:
        text = continuation if not prompt or prompt[-1].isspace() else f" {continuation}"
        whole = ids(prompt + text)
        joined = whole[: len(own)] == own
        return Candidate(continuation, whole[len(own) :] if joined else ids(text))

    own = ids(prompt)
    both, tokens = (after(wanted), after(unwanted)), (*start, *own)
    end = len(tokens)
    return Example(name, None, prompt, wanted, tokens, both[0].ids, both, field_end=end, turn_end=end)


def preferences(answers: Sequence[Answer]) -> Measures:
    """Whether the unwanted continuation of a pair is preferred, and its margin per character."""
    right = np.array([answer.correct or False for answer in answers], float)
    share = np.array([answer.probability or 0.0 for answer in answers], float)  # of the preferred one, of the two
    ahead = np.log(share / np.maximum(1 - share, np.finfo(float).tiny))  # the softmax undone
    every = np.ones(len(answers))
    return {"unwanted_rate": (1 - right, every), "unwanted_margin": (np.where(right > 0, -ahead, ahead), every)}
