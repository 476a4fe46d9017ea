"""Data sets of the Hugging Face hub, whole or streamed; a local folder in the hub's layout is one, too."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy

from salf.errors import UserError
from stages.common.params import Data
from stages.prepare.rows import Loaded, Lost, Row, hold, split_names, without_nulls


def load_hub(data: Data, columns: list[str]) -> Loaded:
    """Load ``data.name``: all rows, or so many as ``data.stream`` names of every split.

    Streamed rows are drawn by the seed: files in random order, and rows out of a buffer as large as the draw. No more
    than twice the draw is read, and what lies far behind in a file is never drawn.

    Args:
        data: the parameter group.
        columns: the columns that are needed; others are left unread.

    Raises:
        UserError: it cannot be loaded, or lacks a split that ``data.splits`` names.
    """
    names = split_names(data)
    with _faults_named(data):
        parts, commit = _open(data)
        _check_splits(data, names, parts)
        rows: dict[str, list[Row]] = {}
        refused = Lost()
        present: dict[str, None] = {}  # a set that keeps the order
        digests = {name: hashlib.sha256() for name in names.values()}
        for split, name in names.items():
            found = _read(_drawn(parts[name], data), name, columns, present, digests[name])
            rows[split], not_drawn = hold(found, split, data)
            refused += not_drawn
    identity = {
        "kind": "hub",
        "name": data.name,
        "config": data.config,
        "revision": commit or data.revision,
        "streamed": data.stream,
        "sha256": {name: digest.hexdigest() for name, digest in digests.items()},
    }
    return Loaded(rows, tuple(present), identity, refused)


def _open(data: Data) -> tuple[Mapping[str, Any], str | None]:
    """The splits, and the commit that the revision stands for: a branch may move, a commit does not."""
    import datasets  # slow, and needed by this source alone

    builder = datasets.load_dataset_builder(data.name, data.config, revision=data.revision)
    commit = builder.hash if re.fullmatch(r"[0-9a-f]{40}", builder.hash or "") else None  # a folder has none
    if data.stream is not None:
        return dict(builder.as_streaming_dataset()), commit
    builder.download_and_prepare()
    return dict(builder.as_dataset()), commit


@contextmanager
def _faults_named(data: Data) -> Iterator[None]:
    """One line for whatever the library, the network or a damaged file says; a stream meets them while it is read."""
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
            # It does not say whose fault it was made of: what is not there, is gated and is private look alike.
            reason += (
                f" Correct the name; if it is gated, accept the terms on {hub_page('data set', name)} and {LOG_IN}"
            )
        raise UserError(f"data.name = {data.name}: the data set cannot be loaded: {reason}") from None


def _check_splits(data: Data, names: Mapping[str, str], parts: Mapping[str, Any]) -> None:
    for name in names.values():
        if name not in parts:
            raise UserError(
                f"data.name = {data.name}: no split {name!r}; it has {', '.join(sorted(parts))}; "
                "name the splits in data.splits (null: carved out of the training split)"
            )


def _drawn(part: Any, data: Data) -> Any:
    if data.stream is None:
        return part
    return part.shuffle(seed=data.seed, buffer_size=data.stream).take(data.stream)


def _read(part: Any, name: str, columns: list[str], present: dict[str, None], digest: "hashlib._Hash") -> Iterator[Row]:
    """The rows of a split with the columns that are needed; ``present`` takes all that it has, ``digest`` the rows."""
    known = part.column_names  # a stream may not know them before its first row
    present |= dict.fromkeys(known or ())
    if known:
        part = part.select_columns([column for column in columns if column in known])
    features = part.features or {}
    # Class labels are stored as numbers; their names are what a reader and label_words mean.
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}
    single = [column for column, feature in features.items() if getattr(feature, "dtype", None) == "float32"]
    for number, values in enumerate(part, start=1):
        present |= dict.fromkeys(values)
        values = {column: without_nulls(values[column]) for column in columns if column in values}
        for column, words in names.items():
            value = values[column]
            values[column] = words[value] if isinstance(value, int) and 0 <= value < len(words) else None
        for column in single:
            values[column] = None if values[column] is None else numpy.float32(values[column])
        digest.update(repr(sorted(values.items())).encode(errors="surrogatepass"))
        yield Row(f"{name}-{number:07d}", values)
