"""Where rows come from: the embedded docstrings, files, or the Hugging Face hub."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from stages.common.artifacts import sha256_file
from stages.common.command import UserError
from stages.common.params import Data
from stages.prepare.docstrings import LIBRARIES, read_docstrings
from stages.prepare.files import read_rows, read_text
from stages.prepare.folders import TEXT, split_files
from stages.prepare.hub import load_hub
from stages.prepare.rows import TRAIN, Loaded, Row, split_names, top

# Sentences read per sentence kept: near-duplicates and whole files that fall to one split cost some.
_SPARE: Final = 1.4


def load_rows(data: Data, columns: Iterable[str]) -> Loaded:
    """Load the rows of ``data.source``.

    Args:
        data: the parameter group.
        columns: the columns (or paths inside them) that are needed; others may be left unread.

    Raises:
        UserError: the source is missing, damaged, or lacks a split that ``data.splits`` names.
    """
    if data.source == "docstrings":
        return read_docstrings(data.seed, _docstrings_wanted(data))
    if data.source == "hub":
        return load_hub(data, sorted({name for column in columns for name in (column, top(column))}))
    return _load_files(data)


def _docstrings_wanted(data: Data) -> int | None:
    limits = (data.limits.train, data.limits.validation, data.limits.test)
    known = [limit for limit in limits if limit is not None]
    return math.ceil(_SPARE * sum(known) / len(LIBRARIES)) if len(known) == len(limits) else None


def _load_files(data: Data) -> Loaded:
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"data.path = {data.path}: no such file or folder")
    root = path.parent if path.is_file() else path
    files = {TRAIN: [path]} if path.is_file() else {s: split_files(path, n) for s, n in split_names(data).items()}
    rows: dict[str, list[Row]] = {}
    columns: dict[str, None] = {}  # a set that keeps the order
    names: dict[str, Path] = {}
    for split, parts in files.items():
        rows[split] = []
        for file in parts:
            name = file.relative_to(root).with_suffix("").as_posix()
            if names.setdefault(name, file) != file:
                raise UserError(
                    f"{file}: stands beside {names[name].name}, and rows are named without the suffix; rename one"
                )
            for number, values in enumerate(_read(file), start=1):
                columns.update(dict.fromkeys(values))
                rows[split].append(Row(f"{name}-{number:07d}", values))
    hashes = {file.relative_to(root).as_posix(): sha256_file(file) for parts in files.values() for file in parts}
    return Loaded(rows, tuple(columns), {"kind": "files", "path": data.path, "sha256": hashes})


def _read(file: Path) -> list[dict[str, Any]]:
    """Rows of a table; a text in a folder that is named after its class is one row."""
    return [{"text": read_text(file), "label": file.parent.name}] if file.suffix == TEXT else read_rows(file)
