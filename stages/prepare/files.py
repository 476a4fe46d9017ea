"""Rows of csv, tsv, json, jsonl and parquet files, read one after the other and with the needed columns only."""

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Final, TextIO

import pyarrow
import pyarrow.parquet

from salf.errors import UserError
from salf.memory import free_memory_bytes
from stages.prepare.rows import described, listed, without_nulls

SUFFIXES: Final = (".csv", ".tsv", ".json", ".jsonl", ".parquet")

_BATCH: Final = 256  # rows of a parquet file in memory at a time, beside those that are kept
_LONGEST: Final = 1 << 28  # characters of a line or a csv field
_HEAD: Final = 1 << 16  # characters in which a JSON file's first sign, or a csv's first line, stands
_BLANK: Final = "\ufeff \t\r\n"  # around a line; a byte-order mark stands where files were joined
_GAP: Final = re.compile(r"\s*")
# How files begin that are not what their name says, and what to do about it.
_OTHER_KINDS: Final = {
    b"\x1f\x8b": "is packed with gzip; unpack it",
    b"BZh": "is packed with bzip2; unpack it",
    b"\xfd7zXZ": "is packed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is packed with zstandard; unpack it",
    b"PK\x03\x04": "is a zip archive or an Excel workbook; save its table as csv",
    b"PAR1": "holds parquet; name it .parquet",
    codecs.BOM_UTF16_LE: "is UTF-16 text; save it as UTF-8",
    codecs.BOM_UTF16_BE: "is UTF-16 text; save it as UTF-8",
    b"version https://git-lfs": "is a git-lfs pointer, not the data; run: git lfs pull",
}


def read_rows(path: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, with those of the wanted columns that they have.

    Args:
        path: the file.
        wanted: names of columns.
        columns: takes the names of all columns of the file, in order.

    Raises:
        UserError: unknown format, unreadable file, or a damaged row, which is named by its line.
    """
    readers = dict(zip(SUFFIXES, (_read_csv, _read_tsv, _read_json, _read_json, _read_parquet), strict=True))
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown format {path.suffix or '(no suffix)'!r}; known: {', '.join(SUFFIXES)}")
    with faults_named(path):
        _check_kind(path, text=reader is not _read_parquet)
        yield from reader(path, wanted, columns)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UserError: it is unreadable, not UTF-8, or too large for this machine's memory.
    """
    with faults_named(path):
        if 8 * path.stat().st_size > free_memory_bytes():  # as characters, and what is made of them
            raise UserError(f"{path}: too large to be read as one text; write its rows as .jsonl, an object a line")
        return path.read_text(encoding="utf-8-sig", errors="surrogatepass")


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """One line for whatever the system or a decoder says about a file or folder."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error.strerror or error).split())}") from None


def _check_kind(path: Path, text: bool) -> None:
    with path.open("rb") as file:
        head = file.read(24)
    kinds = [kind for kind in _OTHER_KINDS if head.startswith(kind) and (text or kind != b"PAR1")]
    if not kinds and text and b"\0" in head[:4]:
        kinds = [codecs.BOM_UTF16]
    if kinds:
        raise UserError(f"{path}: {_OTHER_KINDS[kinds[0]]}")


def _read_tsv(path: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[dict[str, Any]]:
    return _read_csv(path, wanted, columns, delimiter="\t")


def _read_csv(
    path: Path, wanted: Collection[str], columns: dict[str, None], delimiter: str = ","
) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST)  # the default refuses texts of more than 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogatepass", newline="") as file:
        _check_delimiter(path, file.readline(_HEAD), wanted, delimiter)
        file.seek(0)
        reader = csv.reader(_lines(file, path), strict=True, delimiter=delimiter)
        try:
            header = next(filter(None, reader), [])
            _check_names(path, header)
            columns.update(dict.fromkeys(header))
            places = {name: at for at, name in enumerate(header) if name in wanted}
            for fields in reader:
                if fields and len(fields) != len(header):
                    raise UserError(f"{path}:{reader.line_num}: not the {len(header)} fields that the header names")
                if delimiter == "\t" and any(_holds_rows(field, at, len(header)) for at, field in enumerate(fields)):
                    raise UserError(
                        f"{path}:{reader.line_num}: a text of several lines that ends here holds whole rows, "
                        "as after a quote that is part of a text; save the file as jsonl"
                    )
                if fields:
                    yield {name: fields[at] for name, at in places.items()}
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: damaged csv: {error}") from None


def _holds_rows(field: str, at: int, width: int) -> bool:
    """Whether a field (the one with this number) begins in one row and ends in that place of a later one."""
    first, *following = [line.split("\t") for line in field.split("\n")]
    sizes = [len(first), *map(len, following)]
    begun = all(map(all, following))  # indented code has empty fields
    return len(sizes) > 1 < width and begun and sizes == [width - at, *[width] * (len(sizes) - 2), at + 1]


def _check_delimiter(path: Path, header: str, wanted: Collection[str], delimiter: str) -> None:
    def names_any(sign: str) -> bool:
        return any(part.strip().strip('"') in wanted for part in header.split(sign))

    others = ";\t|,".replace(delimiter, "")
    found = [
        sign for sign in others if header.startswith(f"sep={sign}") or (names_any(sign) and not names_any(delimiter))
    ]
    if found:
        raise UserError(
            f"{path}: the columns look separated by {found[0]!r}; save the file with {delimiter!r} between them"
        )


def _check_names(path: Path, names: list[str]) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise UserError(f"{path}: the header names {listed(twice)} more than once; rename a column")


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise UserError(f"{path}:{number}: a line of more than {_LONGEST:,} characters")
        yield line


def _read_json(path: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[dict[str, Any]]:
    """Objects in a list, or one after the other, whatever of the two suffixes the file has."""
    rows = _json_objects(path)
    start = [row for _, row in zip(range(2), rows, strict=False)]
    if len(start) == 1:
        _check_is_row(path, start[0], wanted)
    for row in chain(start, rows):
        columns.update(dict.fromkeys(row))
        yield {name: value for name, value in row.items() if name in wanted}


def _check_is_row(path: Path, row: dict[str, Any], wanted: Collection[str]) -> None:
    """Whether a file's only object is one row, and not a whole table in another shape."""
    sizes = {len(value) if isinstance(value, list | dict) else 0 for value in row.values()}
    if len(row) > 1 and len(sizes) == 1 and sizes.pop() > 1:
        raise UserError(
            f"{path}: whole columns in one object; write an object for every row (pandas: orient='records')"
        )
    if not any(name in wanted for name in row):
        key = next(
            (key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)),
            None,
        )
        advice = "write a list of objects, one for every row" if key is None else f"write the list in {key!r} alone"
        raise UserError(f"{path}: {described(row)}, not a list of rows; {advice}")


def _json_objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogatepass") as file:
        listed_at_once = file.read(_HEAD).lstrip().startswith("[")
        file.seek(0)
        lines = ((n, line) for n, each in enumerate(_lines(file, path), start=1) if (line := each.strip(_BLANK)))
        first = None if listed_at_once else next(lines, None)
        if first and _is_whole(first[1]):
            for number, line in chain([first], lines):
                yield from _objects(line, path, number)
            return
    yield from _objects(read_text(path), path)


def _is_whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _objects(text: str, path: Path, line: int = 1) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, or of several objects one after the other; ``line``: of the text's beginning."""
    at = _gap(text, 0)
    in_list = text[at : at + 1] == "["
    at = _gap(text, at + in_list)
    while text[at : at + 1] != ("]" if in_list else ""):
        try:
            row, end = _DECODER.raw_decode(text, at)
            following = _gap(text, end)
            if in_list and text[following : following + 1] not in ("]", ","):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, following)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{line + error.lineno - 1}: damaged JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error).partition(":")[0]
            raise UserError(f"{path}:{_line(text, at, line)}: damaged JSON: {reason}") from None
        if not isinstance(row, dict):
            where = f"{path}:{_line(text, at, line)}"
            raise UserError(f"{where}: expected an object with columns, found {described(row)}")
        yield row
        at = _gap(text, following + 1) if text[following : following + 1] == "," else following
    if rest := text[at + in_list :].strip():
        raise UserError(f"{path}: damaged JSON: more follows the list: {rest[:20]!r}")


def _gap(text: str, at: int) -> int:
    found = _GAP.match(text, at)
    return found.end() if found else at


def _line(text: str, at: int, first: int) -> int:
    return first + text.count("\n", 0, at)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _read_parquet(path: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[dict[str, Any]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        _check_names(path, names)
        columns.update(dict.fromkeys(names))
        for batch in file.iter_batches(_BATCH, columns=[name for name in names if name in wanted]):
            held = {name: _values(path, name, batch.column(name)) for name in names if name in wanted}
            for at in range(batch.num_rows):
                yield {name: values[at] for name, values in held.items()}
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: damaged parquet: {' '.join(str(error).split())}") from None


def _values(path: Path, name: str, column: pyarrow.Array) -> list[Any]:
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:  # what is not UTF-8 becomes half of a surrogate pair, and its row is refused
        values = [value and value.decode(errors="surrogateescape") for value in column.cast("binary").to_pylist()]
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: column {name!r} cannot be read: {error}") from None
    if pyarrow.types.is_float16(column.type) or pyarrow.types.is_float32(column.type):
        precise = column.type.to_pandas_dtype()  # whose digits as_text prints
        return [value if value is None else precise(value) for value in values]
    return [without_nulls(value) for value in values] if pyarrow.types.is_nested(column.type) else values
