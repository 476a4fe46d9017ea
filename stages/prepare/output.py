"""The prepared folder: one parquet file per split, and ``meta.json``."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet

from salf.files import replacing_folder, sha256_file, write_json
from stages.common.params import Data, Prepare
from stages.prepare.chat import ChatTemplate
from stages.prepare.examples import Filler
from stages.prepare.rows import Example, Lost
from stages.prepare.tokens import PromptTokenizer, Tokenised, shared_prefix

SCHEMA: Final = 1

_COLUMNS: Final = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("label", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer_ids", pa.list_(pa.int32()), nullable=False),
    ]
)


# Multiple choice alone: what the answer is chosen from, the right one among them.
_CANDIDATES: Final = pa.field(
    "candidates",
    pa.list_(pa.struct([pa.field("text", pa.string()), pa.field("ids", pa.list_(pa.int32()))])),
    nullable=False,
)


def write_prepared(folder: Path, splits: Mapping[str, Sequence[Tokenised]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Write the folder in one step.

    Args:
        folder: takes the place of an older one.
        splits: the examples by split.
        meta: what ``describe`` returns.

    Returns:
        The meta data as written, with the hash of every split's file.
    """
    with replacing_folder(folder) as aside:
        described = {name: dict(facts) for name, facts in meta["splits"].items()}
        for name, examples in splits.items():
            path = aside / f"{name}.parquet"
            pyarrow.parquet.write_table(_table(examples), path, compression="zstd")
            described[name]["sha256"] = sha256_file(path)
        written = {**meta, "splits": described}
        write_json(aside / "meta.json", written)
    return written


def describe(
    splits: Mapping[str, Sequence[Tokenised]],
    labels: Mapping[str, list[int]] | None,
    data: Data,
    prepare: Prepare,
    *,
    tokenizer: PromptTokenizer,
    chat: ChatTemplate | None,
    source: Mapping[str, Any],
    dropped: Lost,
    refused: Lost,
    filler: Filler,
    before: Mapping[str, Sequence[Example]],
) -> dict[str, Any]:
    """The contents of ``meta.json``, but for the files' hashes.

    ``tokens`` of a split is what a forward pass over all its examples sees: the last answer token is
    predicted, never read. ``end_token_id`` is what answers end with: free ones, and label words where one begins
    another; ``choice_score`` is how candidates are compared; ``chat_template`` is the digest of the template that
    prompts were written with; ``max_tokens`` is the length that held: the smaller of what was asked for and the model's
    context. ``noted`` says what is unusual about kept rows. ``classes_left_out`` are labels
    without a training row that could be kept, and the rows that have them; ``blank`` counts the examples in which a
    column of the template (or of the group) is empty. ``balance`` names the splits that were balanced over their labels
    where a limit cut them; ``label_counts`` are those of the kept rows, ``source_label_counts`` those of the rows
    ``before`` the limits.
    """
    rows = [row for examples in splits.values() for row in examples]
    words = {row.example.label: row.example.answer for row in rows}
    ended = data.task == "free" or (labels and all(ids[-1] == tokenizer.end for ids in labels.values()))
    noted = Counter(note for row in rows for note in tokenizer.notes(row))
    return {
        "schema": SCHEMA,
        "task": data.task,
        "source": dict(source),
        "end_token_id": tokenizer.end if ended else None,
        "choice_score": data.choices.score if data.task == "multiple-choice" else None,
        "chat_template": chat.digest if chat else None,
        "labels": [{"label": label, "word": words[label], "token_ids": ids} for label, ids in (labels or {}).items()],
        "balance": data.balance if data.task == "classification" else None,
        "splits": {name: _split_facts(examples, before[name]) for name, examples in splits.items()},
        "dropped": {reason: count for (_, reason), count in sorted(dropped.items())},
        "refused": [
            {"split": split, "reason": reason, "count": count} for (split, reason), count in sorted(refused.items())
        ],
        "classes_left_out": {label: n for label, n in sorted(filler.classes.items()) if label not in (labels or {})},
        "blank": dict(filler.blank),
        "noted": [{"reason": reason, "count": count} for reason, count in sorted(noted.items())],
        "truncated": sum(row.cut for row in rows),
        "shared_prefix_tokens": shared_prefix([row.prompt_ids for row in rows]),
        "max_tokens": tokenizer.room(prepare.max_tokens),
        "template": f"{{{data.messages}}}" if data.messages else data.template,
    }


def _split_facts(examples: Sequence[Tokenised], before: Sequence[Example]) -> dict[str, Any]:
    lengths = [len(row.prompt_ids) for row in examples]
    candidates = sum(len(row.candidate_ids) for row in examples)
    return {
        **({"candidates": candidates} if candidates else {}),
        "rows": len(examples),
        "tokens": sum(len(row.prompt_ids) + len(row.answer_ids) - 1 for row in examples),
        "prompt_tokens_min": min(lengths),
        "prompt_tokens_max": max(lengths),
        "answer_tokens": sum(len(row.answer_ids) for row in examples),
        "label_counts": _label_counts(row.example for row in examples),
        "source_label_counts": _label_counts(before),
    }


def _label_counts(examples: Iterable[Example]) -> dict[str, int]:
    return dict(Counter(example.label for example in examples if example.label is not None))


def _table(examples: Sequence[Tokenised]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS.names}
    for row in examples:
        for name, values in columns.items():
            values.append(getattr(row if name.endswith("_ids") else row.example, name))
    schema = _COLUMNS
    if any(row.candidate_ids for row in examples):
        schema = _COLUMNS.append(_CANDIDATES)
        columns[_CANDIDATES.name] = [
            [{"text": text, "ids": ids} for text, ids in zip(row.example.candidates, row.candidate_ids, strict=True)]
            for row in examples
        ]
    return pa.table(columns, schema=schema)
