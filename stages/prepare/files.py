"""Rows of csv, tsv, json, jsonl and parquet files."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow
import pyarrow.parquet

from stages.common.command import UserError

SUFFIXES: Final = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file into one dictionary a row.

    Raises:
        UserError: unknown format, unreadable file, or a damaged row, which is named by its line.
    """
    readers = dict(zip(SUFFIXES, (_read_csv, _read_tsv, _read_json, _read_jsonl, _read_parquet), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown format {path.suffix or '(no suffix)'!r}; known: {', '.join(SUFFIXES)}")
    with _faults_named(path):
        return list(reader(path))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UserError: it is unreadable or no UTF-8.
    """
    with _faults_named(path):
        return path.read_text(encoding="utf-8-sig")


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_tsv(path: Path) -> Iterator[dict[str, Any]]:
    return _read_csv(path, delimiter="\t")


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, restkey=None, restval=None, delimiter=delimiter)
        try:
            header = list(reader.fieldnames or [])
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise UserError(f"{path}: the header names {', '.join(twice)} more than once; rename a column")
            for row in reader:
                if None in row or None in row.values():
                    expected = len(reader.fieldnames or [])
                    raise UserError(f"{path}:{reader.line_num}: not the {expected} fields that the header names")
                yield row
        except csv.Error as error:
            raise UserError(f"{path}:{reader.reader.line_num}: damaged csv: {error}") from None


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_object(line, f"{path}:{number}")


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):  # many a .json holds one object a line
        yield from _read_jsonl(path)
        return
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: damaged JSON: {error.msg}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number} is no object with columns, but {type(row).__name__}")
        yield row


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: damaged JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with columns, found {type(row).__name__}")
    return row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: damaged parquet: {' '.join(str(error).split())}") from None
