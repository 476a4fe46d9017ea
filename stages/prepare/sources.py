"""Where rows come from: the embedded docstrings, files, or the Hugging Face hub."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from stages.common.artifacts import digest_of, sha256_file
from stages.common.command import UserError
from stages.common.params import Data
from stages.prepare.docstrings import LIBRARIES, read_docstrings
from stages.prepare.files import SUFFIXES, read_rows
from stages.prepare.rows import SPLITS, TEST, TRAIN, VALIDATION, Loaded, Row

# Sentences read per sentence kept: near-duplicates and whole files that fall to one split cost some.
_SPARE: Final = 1.4


def load_rows(data: Data, columns: Iterable[str]) -> Loaded:
    """Load the rows of ``data.source``.

    Args:
        data: the parameter group.
        columns: the columns that are needed; others may be left unread.

    Raises:
        UserError: the source is missing, damaged, or lacks a split that ``data.splits`` names.
    """
    if data.source == "docstrings":
        return read_docstrings(data.seed, _docstrings_wanted(data))
    if data.source == "hub":
        return _load_hub(data, sorted(set(columns)))
    return _load_files(data)


def _docstrings_wanted(data: Data) -> int | None:
    limits = (data.limits.train, data.limits.validation, data.limits.test)
    known = [limit for limit in limits if limit is not None]
    return math.ceil(_SPARE * sum(known) / len(LIBRARIES)) if len(known) == len(limits) else None


def _split_names(data: Data) -> dict[str, str]:
    """Our split name to the source's, for those that the source is said to have."""
    names = {TRAIN: data.splits.train, VALIDATION: data.splits.validation, TEST: data.splits.test}
    return {split: name for split, name in names.items() if name is not None}


def _load_files(data: Data) -> Loaded:
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"data.path = {data.path}: no such file or folder")
    files = {TRAIN: path} if path.is_file() else {s: _split_file(path, n) for s, n in _split_names(data).items()}
    rows: dict[str, list[Row]] = {}
    columns: dict[str, None] = {}  # a set that keeps the order
    for split, file in files.items():
        rows[split] = []
        for number, values in enumerate(read_rows(file), start=1):
            columns.update(dict.fromkeys(values))
            rows[split].append(Row(f"{file.stem}-{number:07d}", values))
    hashes = {file.name: sha256_file(file) for file in files.values()}
    return Loaded(rows, tuple(columns), {"kind": "files", "path": data.path, "sha256": hashes})


def _split_file(folder: Path, name: str) -> Path:
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{folder}: split {name!r} stands in two files: {', '.join(f.name for f in found)}; keep one")
    present = ", ".join(sorted(f.name for f in folder.iterdir() if f.suffix in SUFFIXES)) or "no data file"
    raise UserError(
        f"{folder}: no file for split {name!r} ({' or '.join(SUFFIXES)}); found {present}; "
        "name the splits in data.splits (null: carved out of the training split)"
    )


def _load_hub(data: Data, columns: list[str]) -> Loaded:
    names = _split_names(data)
    parts = _fetch(data)
    missing = [name for name in names.values() if name not in parts]
    if missing:
        raise UserError(
            f"data.name = {data.name}: no split {missing[0]!r}; it has {', '.join(sorted(parts))}; "
            "name the splits in data.splits (null: carved out of the training split)"
        )
    rows = {split: _hub_rows(parts[name], name, columns) for split, name in names.items()}
    present = tuple(dict.fromkeys(column for name in names.values() for column in parts[name].column_names))
    identity = {
        "kind": "hub",
        "name": data.name,
        "config": data.config,
        "revision": data.revision,
        "sha256": {names[split]: _rows_digest(rows[split]) for split in SPLITS if split in rows},
    }
    return Loaded(rows, present, identity)


def _fetch(data: Data) -> Mapping[str, Any]:
    import datasets  # slow, and needed by this source alone

    try:
        return dict(datasets.load_dataset(data.name, data.config, revision=data.revision))
    except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data.name = {data.name}: the data set cannot be loaded: {reason}") from None


def _hub_rows(part: Any, name: str, columns: list[str]) -> list[Row]:
    part = part.select_columns([column for column in columns if column in part.column_names])
    # Class labels are stored as numbers; their names are what a reader and label_words mean.
    names = {column: feature.names for column, feature in part.features.items() if hasattr(feature, "names")}
    rows = []
    for number, values in enumerate(part.to_list(), start=1):
        for column, words in names.items():
            value = values[column]
            values[column] = words[value] if isinstance(value, int) and value >= 0 else None
        rows.append(Row(f"{name}-{number:07d}", values))
    return rows


def _rows_digest(rows: list[Row]) -> str:
    return digest_of([{column: repr(value) for column, value in row.values.items()} for row in rows])
