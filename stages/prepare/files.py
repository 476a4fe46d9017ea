"""Rows of csv, json, jsonl and parquet files."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow
import pyarrow.parquet

from stages.common.command import UserError

SUFFIXES: Final = (".csv", ".json", ".jsonl", ".parquet")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file into one dictionary a row.

    Raises:
        UserError: unknown format, unreadable file, or a damaged row, which is named by its line.
    """
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown format {path.suffix or '(no suffix)'!r}; known: {', '.join(SUFFIXES)}")
    try:
        return list(reader(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses texts of more than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, restkey=None, restval=None)
        try:
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
