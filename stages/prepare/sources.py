"""Where rows come from: the embedded docstrings, files, or the Hugging Face hub."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from salf.errors import UserError
from salf.files import sha256_file
from stages.common.params import Data
from stages.prepare.docstrings import LIBRARIES, read_docstrings
from stages.prepare.files import faults_named, read_rows, read_text
from stages.prepare.folders import TEXT, split_files
from stages.prepare.hub import load_hub
from stages.prepare.rows import TRAIN, Loaded, Lost, Row, hold, is_unicode, split_names, top

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
    wanted = sorted({name for column in columns for name in (column, top(column))})
    return load_hub(data, wanted) if data.source == "hub" else _load_files(data, wanted)


def _docstrings_wanted(data: Data) -> int | None:
    limits = (data.limits.train, data.limits.validation, data.limits.test)
    known = [limit for limit in limits if limit is not None]
    return math.ceil(_SPARE * sum(known) / len(LIBRARIES)) if len(known) == len(limits) else None


def _load_files(data: Data, wanted: Collection[str]) -> Loaded:
    path = Path(data.path)
    with faults_named(path):
        files = _files(path, split_names(data))
    root = path if path.is_dir() else path.parent
    rows: dict[str, list[Row]] = {}
    refused = Lost()
    columns: dict[str, None] = {}  # a set that keeps the order
    for split, named in _named(files, root).items():
        found = (
            Row(f"{name}-{number:07d}", values)
            for name, file in named.items()
            for number, values in enumerate(_read(file, wanted, columns), start=1)
        )
        rows[split], not_drawn = hold(found, split, data)
        refused += not_drawn
    hashes = {file.relative_to(root).as_posix(): sha256_file(file) for parts in files.values() for file in parts}
    return Loaded(rows, tuple(columns), {"kind": "files", "path": data.path, "sha256": hashes}, refused)


def _files(path: Path, names: Mapping[str, str]) -> dict[str, list[Path]]:
    """The files of every split."""
    if path.is_file():
        if len(names) > 1:
            raise UserError(
                f"data.path = {path}: one file holds one split; set data.splits.validation and test to null "
                "(they are carved out of it), or name a folder"
            )
        return {TRAIN: [path]}
    if path.is_dir():
        return {split: split_files(path, name) for split, name in names.items()}
    fault = "is neither a file nor a folder" if path.exists() else "no such file or folder"
    raise UserError(f"data.path = {path}: {fault}")


def _named(files: Mapping[str, Sequence[Path]], root: Path) -> dict[str, dict[str, Path]]:
    """The files of every split by the names that their rows begin with."""
    every: dict[str, Path] = {}
    named: dict[str, dict[str, Path]] = {}
    for split, parts in files.items():
        named[split] = {}
        for file in parts:
            name = file.relative_to(root).with_suffix("").as_posix()
            if not is_unicode(name):
                raise UserError(f"{str(file)!r}: the file's name is not UTF-8 text; rename it")
            if every.setdefault(name, file) != file:
                raise UserError(
                    f"{file}: stands beside {every[name].name}, and rows are named without the suffix; rename one"
                )
            named[split][name] = file
    return named


def _read(file: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[dict[str, Any]]:
    """Rows of a table; a text in a folder that is named after its class is one row."""
    if file.suffix != TEXT:
        return read_rows(file, wanted, columns)
    row = {"text": read_text(file), "label": file.parent.name}
    columns.update(dict.fromkeys(row))
    return iter([row])
