"""Rows of data files, read one after the other and with the needed columns only."""

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import pyarrow
import pyarrow.parquet

from salf.errors import UserError
from salf.memory import free_memory_bytes
from stages.prepare.rows import described, listed

BATCH: Final = 256  # rows of a table in memory at a time, in addition to those that are kept
_LONGEST: Final = 1 << 28  # characters of a line or a csv field
_HEAD: Final = 1 << 16  # characters that are read to find out a file's form
_BLANK: Final = "\ufeff \t\r\n"  # around a line; joined files have byte-order marks inside
_GAP: Final = re.compile(r"\s*,?\s*")
# Beginnings of files that are not what their name says: gzip, bzip2, xz, zstandard, zip (Excel, too).
_PACKED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")


def read_rows(path: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with their wanted columns; ``columns`` receives the names of all, in order."""
    with faults_named(path):
        _check_kind(path)
        for row in FORMATS[path.suffix.lower()](path, wanted):
            columns.update(dict.fromkeys(row))
            yield {name: value for name, value in row.items() if name in wanted}


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Turn what the system or a decoder says about a file or folder into one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error.strerror or error).split())}") from None


def _check_kind(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(24)
    table = path.suffix.lower() == ".parquet"
    faults = {
        "is packed, or an Excel workbook; unpack it, or save its table as csv": head.startswith(_PACKED),
        "holds parquet; name it .parquet": head.startswith(b"PAR1") and not table,
        "is UTF-16 text; save it as UTF-8": head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        or (b"\0" in head[:4] and not table),
        "is a git-lfs pointer, not the data; run: git lfs pull": head.startswith(b"version https://git-lfs"),
    }
    if fault := next((fault for fault, found in faults.items() if found), None):
        raise UserError(f"{path}: {fault}")


def _read_csv(path: Path, _wanted: Collection[str], delimiter: str = ",") -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST)  # the default refuses texts of more than 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
        reader = csv.reader(_lines(file, path), strict=True, delimiter=delimiter)
        try:
            header = next(filter(None, reader), [])
            _check_names(path, header)
            for fields in filter(None, reader):
                if len(fields) != len(header):
                    names = listed(header, 5)
                    raise UserError(f"{path}:{reader.line_num}: not the {len(header)} fields of the header ({names})")
                if delimiter == "\t" and any(_holds_rows(field, at, len(header)) for at, field in enumerate(fields)):
                    raise UserError(f"{path}:{reader.line_num}: a text of several lines holds whole rows; write jsonl")
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: damaged csv: {error}") from None


def _holds_rows(field: str, at: int, width: int) -> bool:
    """Whether a field (the one with this number) begins in one row and ends in that place of a later one."""
    first, *following = [line.split("\t") for line in field.split("\n")]
    sizes = [len(first), *map(len, following)]
    begun = all(map(all, following))  # indented code has empty fields
    return len(sizes) > 1 < width and begun and sizes == [width - at, *[width] * (len(sizes) - 2), at + 1]


def _check_names(path: Path, names: list[str]) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise UserError(f"{path}: the header names {listed(twice)} more than once; rename a column")


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(iter(partial(file.readline, _LONGEST), ""), start=1):
        if len(line) == _LONGEST:
            raise UserError(f"{path}:{number}: a line of more than {_LONGEST:,} characters")
        yield line


def _read_json(path: Path, _wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield objects in lists or one after the other, whichever of the two suffixes the file has."""
    for line, text in _json_texts(path):
        at = len(text) - len(text.lstrip())
        while at < len(text):
            try:
                value, end = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                place = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else text.count("\n", 0, at)
                reason = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(":")[0]
                raise UserError(f"{path}:{line + place}: damaged JSON: {reason}") from None
            for row in value if isinstance(value, list) else [value]:
                if not isinstance(row, dict):
                    where = f"{path}:{line + text.count(chr(10), 0, at)}"
                    raise UserError(f"{where}: expected an object with columns, found {described(row)}")
                yield row
            gap = _GAP.match(text, end)
            at = gap.end() if gap else end


def _json_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file whose first line is an object, else the whole text; each with its line's number."""
    with path.open(encoding="utf-8-sig", errors="surrogatepass") as file:
        if not file.read(_HEAD).lstrip().startswith("["):
            file.seek(0)
            lines = ((n, line) for n, each in enumerate(_lines(file, path), start=1) if (line := each.strip(_BLANK)))
            first = next(lines, (1, ""))
            with suppress(ValueError, RecursionError):
                if isinstance(json.loads(first[1]), dict):
                    yield from chain([first], lines)
                    return
    yield 1, _whole_text(path)


def _whole_text(path: Path) -> str:
    if 8 * path.stat().st_size > free_memory_bytes():  # as characters, and what is made of them
        raise UserError(f"{path}: too large to be read as one text; write its rows as .jsonl, an object a line")
    return path.read_text(encoding="utf-8-sig", errors="surrogatepass")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} occurs twice in an object")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _read_parquet(path: Path, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _check_names(path, names)
        for batch in file.iter_batches(BATCH, columns=[name for name in names if name in wanted]):
            yield from (dict.fromkeys(names) | row for row in table_rows(batch, path))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: damaged parquet: {' '.join(str(error).split())}") from None


def table_rows(table: pyarrow.RecordBatch | pyarrow.Table, where: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow table as Python values; ``where`` is named in messages."""
    held = {name: _values(where, name, table.column(name)) for name in table.schema.names}
    for at in range(table.num_rows):
        yield {name: values[at] for name, values in held.items()}


def _values(where: Path | str, name: str, column: pyarrow.Array | pyarrow.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # what is not UTF-8 becomes half of a surrogate pair, and its row is refused
        values = [value and value.decode(errors="surrogateescape") for value in column.cast("binary").to_pylist()]
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where}: column {name!r} cannot be read: {error}") from None
    if pyarrow.types.is_float16(column.type) or pyarrow.types.is_float32(column.type):
        precise = column.type.to_pandas_dtype()  # whose digits as_text prints
        return [value if value is None else precise(value) for value in values]
    return [_without_nulls(value) for value in values] if pyarrow.types.is_nested(column.type) else values


def _without_nulls(value: Any) -> Any:
    """Drop the keys that hold nothing: Arrow gives every object of a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value


def _read_text(path: Path, _wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """A text in a folder that is named after its class is one row."""
    yield {"text": _whole_text(path), "label": path.parent.name}


TEXT: Final = ".txt"
FORMATS: Final[dict[str, Callable[[Path, Collection[str]], Iterator[dict[str, Any]]]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
    TEXT: _read_text,
}
TABLES: Final = tuple(suffix for suffix in FORMATS if suffix != TEXT)
