"""The prepared folder (one parquet file per split, and ``meta.json``), and the summary that the stage prints."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet

from salf.blocks import document_of
from salf.files import replacing_folder, sha256_file
from salf.records import PreparedLabel, PreparedRecord, PreparedSplit, RefusedRows, RowCount
from stages.prepare.examples import Filler
from stages.prepare.rows import TRAIN, Example, Lost, listed
from stages.prepare.tokens import PromptTokenizer, Tokenised, shared_prefix

_TYPES: Final = {
    **dict.fromkeys(("example_id", "group", "label", "text", "prompt", "answer"), pa.string()),
    **dict.fromkeys(("prompt_ids", "answer_ids"), pa.list_(pa.int32())),
    **dict.fromkeys(("field_end", "turn_end"), pa.int32()),
}
_OPTIONAL: Final = {"group", "label", "field_end", "turn_end"}
_COLUMNS: Final = pa.schema([pa.field(name, kind, nullable=name in _OPTIONAL) for name, kind in _TYPES.items()])
_SUBGROUP: Final = pa.field("subgroup", pa.string())  # with data.subgroup_column only
# Multiple choice only: the candidates, the right one among them.
_CANDIDATE: Final = pa.struct({"text": pa.string(), "ids": pa.list_(pa.int32())})
_CANDIDATES: Final = pa.field("candidates", pa.list_(_CANDIDATE), nullable=False)


@dataclass(frozen=True)
class Prepared:
    """The prepared form of a source."""

    filler: Filler
    tokenizer: PromptTokenizer
    max_tokens: int
    source: Mapping[str, Any]
    before: Mapping[str, Sequence[Example]]  # the examples of every split before the limits
    splits: Mapping[str, Sequence[Tokenised]]
    labels: Mapping[str, list[int]] | None  # label to the token ids of its word; ``None`` where the task has no classes
    dropped: Lost  # rows that would have leaked from one split into another, or that occur twice
    refused: Lost  # rows that cannot be used


def write_prepared(folder: Path, made: Prepared) -> PreparedRecord:
    """Write the folder in one step; it replaces an older one. Returns what ``meta.json`` holds."""
    with replacing_folder(folder) as aside:
        hashes = {}
        for name, examples in made.splits.items():
            file = aside / f"{name}.parquet"
            table = _table(examples, subgroups=bool(made.filler.data.subgroup_column))
            pyarrow.parquet.write_table(table, file, compression="zstd")
            hashes[name] = sha256_file(file)
        record = _record(made, hashes)
        record.save(aside)
    return record


def _record(made: Prepared, hashes: Mapping[str, str]) -> PreparedRecord:
    data, end, labels = made.filler.data, made.tokenizer.end, made.labels or {}
    rows = [row for examples in made.splits.values() for row in examples]
    words = {row.example.label: row.example.answer for row in rows}
    ended = made.filler.task.free or (labels and all(ids[-1] == end for ids in labels.values()))
    noted = Counter(note for row in rows for note in made.tokenizer.notes(row))
    merged = Counter(kind for row in rows for kind in row.merged)
    own = {"merged_labels": made.filler.merged, "subgroup_column": data.subgroup_column}
    return PreparedRecord(
        schema=1,
        task=data.task,
        source=dict(made.source),
        end_token_id=end if ended else None,
        choice_score=data.choices.score if made.filler.task.candidates else None,
        chat_template=made.filler.chat.digest if made.filler.chat else None,
        labels=[PreparedLabel(label=label, word=words[label], token_ids=ids) for label, ids in labels.items()],
        balance=data.balance if made.filler.task.labels else None,
        splits={name: _split(part, made, name, hashes[name]) for name, part in made.splits.items()},
        dropped={reason: count for (_, reason), count in sorted(made.dropped.items())},
        refused=[RefusedRows(split=of, reason=reason, count=n) for (of, reason), n in sorted(made.refused.items())],
        classes_left_out={label: n for label, n in sorted(made.filler.classes.items()) if label not in labels},
        blank=dict(made.filler.blank),
        noted=[RowCount(reason=reason, count=count) for reason, count in sorted(noted.items())],
        merged={kind: merged[kind] for kind in (("field", "turn") if made.tokenizer.chat else ("field",))},
        truncated=sum(row.cut for row in rows),
        shared_prefix_tokens=shared_prefix([row.prompt_ids for row in rows]),
        max_tokens=made.tokenizer.room(made.max_tokens),
        template=f"{{{data.messages}}}" if data.messages else data.template,
        **{name: value for name, value in own.items() if value},
    )


def _split(examples: Sequence[Tokenised], made: Prepared, name: str, sha256: str) -> PreparedSplit:
    """Describe a split; ``tokens`` does not count each last answer token, which is predicted and never read."""
    lengths = [len(row.prompt_ids) for row in examples]
    answer_tokens = sum(len(row.answer_ids) for row in examples)
    own: dict[str, int] = {}
    if made.tokenizer.chat:
        own["turn_tokens"] = sum(row.turn_end or 0 for row in examples)
    if made.filler.task.candidates:
        own["candidates"] = sum(len(row.candidate_ids) for row in examples)
    if made.filler.task.text:
        own["documents"] = len({document_of(row.example.example_id) for row in examples})
        own["short_blocks"] = sum(len(row.prompt_ids) + len(row.answer_ids) < made.max_tokens for row in examples)
    return PreparedSplit(
        rows=len(examples),
        tokens=sum(lengths) + answer_tokens - len(examples),
        prompt_tokens_min=min(lengths),
        prompt_tokens_max=max(lengths),
        answer_tokens=answer_tokens,
        field_tokens=sum(row.field_end for row in examples),
        label_counts=Counter(row.example.label for row in examples if row.example.label is not None),
        source_label_counts=Counter(example.label for example in made.before[name] if example.label is not None),
        sha256=sha256,
        **own,
    )


def _table(examples: Sequence[Tokenised], *, subgroups: bool) -> pa.Table:
    schema = _COLUMNS.append(_SUBGROUP) if subgroups else _COLUMNS
    columns: dict[str, list[Any]] = {
        name: [getattr(row if name.endswith(("_ids", "_end")) else row.example, name) for row in examples]
        for name in schema.names
    }
    if not any(row.candidate_ids for row in examples):
        return pa.table(columns, schema=schema)
    columns[_CANDIDATES.name] = [
        [{"text": text, "ids": ids} for text, ids in zip(row.example.candidates, row.candidate_ids, strict=True)]
        for row in examples
    ]
    return pa.table(columns, schema=schema.append(_CANDIDATES))


def print_summary(made: Prepared, record: PreparedRecord) -> None:
    """Print rows, classes, lost rows, lengths, and one example."""
    for name, split in record.splits.items():
        lengths = f"prompts of {split.prompt_tokens_min} to {split.prompt_tokens_max} tokens"
        print(f"{name}: {split.rows:,} rows ({_classes(record, split)}), {split.tokens:,} tokens, {lengths}")
    lists = {
        "dropped": [f"{n:,} {reason}" for reason, n in record.dropped.items()],
        "refused": [f"{one.split}: {one.count:,} {one.reason}" for one in record.refused],
        "kept, but see": [f"{one.count:,} {one.reason}" for one in record.noted],
        "classes left out": [f"{label} ({n:,} rows)" for label, n in record.classes_left_out.items()],
        "merged by data.label_words": [f"{word} = {', '.join(each)}" for word, each in record.merged_labels.items()],
        "empty": [f"{column} in {n:,} rows" for column, n in record.blank.items()],
    }
    for title, lines in lists.items():
        if lines:
            print(f"{title}: {listed(lines, 10, '; ')}")
    if not made.filler.task.text:
        print(f"cut from the left at {record.max_tokens:,} tokens: {record.truncated:,} prompts")
        print(f"shared by all prompts: their first {record.shared_prefix_tokens:,} tokens")
    example = made.splits[TRAIN][0].example
    print(f"an example:\n{example.prompt} [{example.answer}]")


def _classes(record: PreparedRecord, split: PreparedSplit) -> str:
    if split.documents:
        return f"{split.documents:,} documents, {split.short_blocks:,} short"
    if split.candidates:
        return f"{split.candidates / split.rows:.3g} candidates a row"
    if not record.labels:
        return "free answers"
    fewest, most = min(split.label_counts.values()), max(split.label_counts.values())
    return f"classes: {len(split.label_counts)} of {fewest}{'' if fewest == most else f' to {most}'} rows"
