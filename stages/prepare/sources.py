"""Loads rows from the embedded docstrings, files, or the Hugging Face Hub."""

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import nsmallest
from itertools import chain, count
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import psutil

from salf.errors import UserError
from salf.files import sha256_file
from salf.memory import free_memory_bytes
from salf.settings import TASKS
from stages.common.params import Data
from stages.prepare.docstrings import LIBRARIES, read_docstrings
from stages.prepare.files import BATCH, TABLES, TEXT, faults_named, read_rows, table_rows
from stages.prepare.rows import TRAIN, Loaded, Lost, Row, draw_key, is_unicode, top

# Sentences read per sentence kept: near-duplicates and whole files that fall to one split cost some.
_SPARE: Final = 1.4
_MOST: Final = 500_000  # rows of a split
_ROOM: Final = 4 << 30  # bytes that the rows of a split may take up, where so much is free
_WATCH: Final = 256  # rows between two looks at the memory
_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>\d+)-of-(?P<parts>\d+)")  # as the Hub numbers them
_NAME_THEM: Final = "name the splits in data.splits (null: carved out of the training split)"


def load_rows(data: Data, columns: Iterable[str]) -> Loaded:
    """Load the rows of ``data.source``; columns other than the named ones may be left unread."""
    if data.source == "docstrings":
        limits = [limit for _, limit in data.limits]
        wanted = None if None in limits else math.ceil(_SPARE * sum(limits) / len(LIBRARIES))
        return read_docstrings(data.seed, wanted)
    needed = {name for column in columns for name in (column, top(column))}
    return _load_hub(data, needed) if data.source == "hub" else _load_files(data, needed)


def _load_files(data: Data, wanted: Collection[str]) -> Loaded:
    path, formats = Path(data.path), (*TABLES, *([TEXT] if TASKS[data.task].text else []))
    with faults_named(path):
        files = _files(path, data.splits.named, formats)
    root = path if path.is_dir() else path.parent
    names: dict[str, Path] = {}
    for file in chain.from_iterable(files.values()):
        name = _row_name(file, root)
        if not is_unicode(name):
            raise UserError(f"{str(file)!r}: the file's name is not UTF-8 text; rename it")
        if name in names:
            raise UserError(f"{file}: {names[name].name} would give its rows the same names; rename one of the files")
        names[name] = file
    columns: dict[str, None] = {}  # a set that keeps the order
    found = {split: _rows_of(parts, root, wanted, columns) for split, parts in files.items()}
    rows, refused = _hold(found, data)
    hashes = {file.relative_to(root).as_posix(): sha256_file(file) for file in names.values()}
    return Loaded(rows, tuple(columns), {"kind": "files", "path": data.path, "sha256": hashes}, refused)


def _rows_of(files: Iterable[Path], root: Path, wanted: Collection[str], columns: dict[str, None]) -> Iterator[Row]:
    for file in files:
        name = _row_name(file, root)
        for number, values in enumerate(read_rows(file, wanted, columns), start=1):
            yield Row(f"{name}-{number:07d}", values)


def _row_name(file: Path, root: Path) -> str:
    """The prefix of the names of a file's rows."""
    return file.relative_to(root).with_suffix("").as_posix()


def _files(path: Path, names: Mapping[str, str], formats: Sequence[str]) -> dict[str, list[Path]]:
    """Split → its files."""
    if path.is_dir():
        return {split: _split_files(path, name, formats) for split, name in names.items()}
    if not path.is_file():
        fault = "is neither a file nor a folder" if path.exists() else "no such file or folder"
        raise UserError(f"data.path = {path}: {fault}")
    if path.suffix.lower() not in formats:
        raise UserError(f"{path}: unknown format {path.suffix or '(no suffix)'!r}; known: {', '.join(formats)}")
    if len(names) > 1:
        raise UserError(f"data.path = {path}: one file holds one split; set data.splits.validation and test to null")
    return {TRAIN: [path]}


def _split_files(folder: Path, name: str, formats: Sequence[str]) -> list[Path]:
    """The files of a split: ``train.csv``, ``train-00000-of-00002.parquet``, or those in a folder ``train``."""
    held = _of_formats(folder.iterdir(), formats)
    every = (folder / name).rglob("*")  # but no copies or by-products: .ipynb_checkpoints/a.csv, ._a.csv
    inside = [file for file in every if not any(part[:1] == "." for part in file.relative_to(folder / name).parts)]
    anywhere = TEXT in formats  # otherwise in folders of classes
    texts = sorted(file for file in inside if file.suffix == TEXT and (anywhere or file.parent.parent == folder / name))
    whole = [[file] for suffix in formats for file in held if file.name == f"{name}{suffix}"]
    tables = _of_formats(inside, TABLES)
    forms = [*whole, _parts(folder, name, held), tables or [file for file in texts if file.is_file()]]
    found = [form for form in forms if form]
    if len(found) == 1:
        return found[0]
    if found:
        files = ", ".join(form[0].relative_to(folder).as_posix() for form in found)
        raise UserError(f"{folder}: split {name!r} has two files: {files}; keep one")
    there = [file.name for file in held] + [f"{inner.name}/" for inner in sorted(folder.iterdir()) if inner.is_dir()]
    known, held_there = " or ".join(formats), ", ".join(there) or "no data file"
    raise UserError(f"{folder}: no file for split {name!r} ({known}); found {held_there}; {_NAME_THEM}")


def _parts(folder: Path, name: str, held: Iterable[Path]) -> list[Path]:
    matched = {file: _PART.fullmatch(file.stem) for file in held}
    parts = {file: match for file, match in matched.items() if match and match["name"] == name}
    for match in parts.values():
        if {int(part["number"]) for part in parts.values()} != set(range(int(match["parts"]))):
            raise UserError(f"{folder}: split {name!r} has {len(parts)} of {int(match['parts'])} parts")
    return list(parts)


def _of_formats(files: Iterable[Path], formats: Collection[str]) -> list[Path]:
    return sorted(file for file in files if file.suffix.lower() in formats and file.is_file())


def _load_hub(data: Data, wanted: Collection[str]) -> Loaded:
    """Load ``data.name``: all rows, or ``data.stream`` rows of every split, out of a shuffled buffer.

    At most twice the draw is read from a stream, so rows late in a file are never drawn.
    """
    names = data.splits.named
    columns: dict[str, None] = {}
    digests = {name: hashlib.sha256() for name in names.values()}
    with _hub_faults_named(data):
        parts, commit = _open_hub(data)
        for name in names.values():
            if name not in parts:
                known = ", ".join(sorted(parts))
                raise UserError(f"data.name = {data.name}: no split {name!r}; it has {known}; {_NAME_THEM}")
        found = {split: _hub_rows(parts[name], name, wanted, columns, digests[name]) for split, name in names.items()}
        rows, refused = _hold(found, data)
    identity = {
        "kind": "hub",
        "name": data.name,
        "config": data.config,
        "revision": commit or data.revision,
        "streamed": data.stream,
        "sha256": {name: digest.hexdigest() for name, digest in digests.items()},
    }
    return Loaded(rows, tuple(columns), identity, refused)


def _open_hub(data: Data) -> tuple[Mapping[str, Any], str | None]:
    """Open the splits; returned with the commit, because a branch may move."""
    import datasets  # slow, and needed only by this source

    builder = datasets.load_dataset_builder(data.name, data.config, revision=data.revision)
    commit = builder.hash if re.fullmatch(r"[0-9a-f]{40}", builder.hash or "") else None  # a folder has none
    if data.stream is None:
        builder.download_and_prepare()
        return dict(builder.as_dataset()), commit
    parts = builder.as_streaming_dataset().items()
    return {
        name: part.shuffle(seed=data.seed, buffer_size=data.stream).take(data.stream) for name, part in parts
    }, commit


def _hub_rows(
    part: Any, name: str, wanted: Collection[str], columns: dict[str, None], digest: "hashlib._Hash"
) -> Iterator[Row]:
    """Yield a split's rows with the wanted columns; ``columns`` receives all names, ``digest`` the rows."""
    if known := part.column_names:  # a stream may not know them before its first row
        columns.update(dict.fromkeys(known))
        part = part.select_columns([column for column in known if column in wanted])
    # Class labels are stored as numbers; their names are what a reader and label_words mean.
    classes = {column: kind.names for column, kind in (part.features or {}).items() if hasattr(kind, "names")}
    number = count(1)
    for table in part.with_format("arrow").iter(BATCH):
        columns.update(dict.fromkeys(table.column_names))
        for values in table_rows(table.select([one for one in table.column_names if one in wanted]), str(name)):
            for column, names in classes.items():
                at = values[column]
                values[column] = names[at] if isinstance(at, int) and 0 <= at < len(names) else None
            digest.update(repr(sorted(values.items())).encode(errors="surrogatepass"))
            yield Row(f"{name}-{next(number):07d}", values)


@contextmanager
def _hub_faults_named(data: Data) -> Iterator[None]:
    """One line for what the library, the network or a damaged file says; a stream meets them while it is read."""
    import datasets

    from stages.common.hub import FAULTS, LOG_IN, hub_fault, hub_page

    try:
        yield
    except (*FAULTS, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        name = str(data.name)
        meaning = hub_fault(error, "data set", name, data.revision)
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
            error = error.__cause__  # it says itself only that something went wrong
        reason = meaning or " ".join(str(error).split()) or type(error).__name__
        if meaning is None and isinstance(error, datasets.exceptions.DatasetNotFoundError):
            # It does not tell a missing, a gated and a private dataset apart.
            terms = f"accept the terms on {hub_page('data set', name)} and {LOG_IN}"
            reason += f" Correct the name; if it is gated, {terms}"
        raise UserError(f"data.name = {data.name}: the dataset cannot be loaded: {reason}") from None


def _hold(found: Mapping[str, Iterable[Row]], data: Data) -> tuple[dict[str, list[Row]], Lost]:
    """Read the rows of every split, in their order.

    Where a split has a limit, at most ``_MOST`` rows (or ten times the limit) are kept: those that the seed draws. The
    others are counted. A split may take up ``_ROOM`` bytes, or what is free.
    """
    kept: dict[str, list[Row]] = {}
    refused = Lost()
    for split, rows in found.items():
        watched, limit, number = _watched(rows, split), data.limits.of(split), count()
        if limit is None or data.examples:
            kept[split] = list(watched)
            continue
        most = max(_MOST, 10 * limit)
        numbered = zip(watched, number, strict=False)
        drawn = nsmallest(most, numbered, key=lambda one: draw_key(data.seed, one[0].example_id))
        kept[split] = [row for row, _ in sorted(drawn, key=itemgetter(1))]
        refused[split, f"beyond the {most:,} rows drawn of very many"] = max(0, next(number) - most)
    return kept, +refused


def _watched(rows: Iterable[Row], split: str) -> Iterator[Row]:
    process = psutil.Process()
    start = process.memory_info().rss
    for number, row in enumerate(rows):
        if number % _WATCH == 0 and process.memory_info().rss - start > (room := min(_ROOM, free_memory_bytes())):
            full = f"{number:,} rows of {split} fill {room / 2**20:,.0f} MiB of memory, which is the limit"
            raise UserError(f"data: {full}; give fewer rows, or set data.limits ({_MOST:,} rows are kept then)")
        yield row
