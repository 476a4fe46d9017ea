"""The study's tables: a row per fine-tune, a row per rule's choice, correctness per test example.

Beside them ``settings.json`` holds, by their digest, the settings that rows name. All are rewritten aside
and renamed: a study that is killed leaves whole tables.
"""

import csv
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.study.description import StudyError
from flows.study.settings import digest

Row = dict[str, Any]
RUNS: Final = "runs.csv"
CHOICES: Final = "choices.csv"
INTERVALS: Final = "intervals.csv"
RATES: Final = "rates.csv"
PREDICTIONS: Final = "predictions.parquet"
SETTINGS: Final = "settings.json"

_RUN_COLUMNS: Final[Mapping[str, type]] = {
    "point": str,
    "data_set": str,
    "group": str,
    "measure": str,
    "model": str,
    "seed": int,
    "method": str,
    "boundary": int,
    "layers": int,
    "budget": str,
    "epochs": float,
    "rates": str,
    "learning_rate": float,
    "quality": float,
    "macro_f1": float,
    "loss": float,
    "validation_loss": float,
    "validation_accuracy": float,
    "validation_examples": int,
    "flops": int,
    "trained_parameters": int,
    "test_examples": int,
    "seconds": float,
    "seconds_wall": float,
    "machine": str,
    "cores": int,
    "device": str,
    "dtype": str,
    "data_sha256": str,
    "model_sha256": str,
    "settings": str,
    "method_settings": str,
    "code": str,
}
_CHOICE_COLUMNS: Final[Mapping[str, type]] = {
    "data_set": str,
    "model": str,
    "rule": str,
    "selector": str,
    "boundary": int,
    "layers": int,
    "deciding_share": float,
    "reason": str,
    "scores": str,
    "settings": str,
    "machine": str,
    "cores": int,
    "seconds": float,
}
_INTERVAL_COLUMNS: Final[Mapping[str, type]] = {
    "data_set": str,
    "model": str,
    "source": str,
    "law": str,
    "place": int,
    "predicted": float,
    "low": float,
    "high": float,
    "observed": float,
    "confidence": float,
}
_RATE_COLUMNS: Final[Mapping[str, type]] = {
    "data_set": str,
    "model": str,
    "seed": int,
    "method": str,
    "budget": str,
    "learning_rate": float,
    "validation_loss": float,
    "validation_accuracy": float,
    "test_loss": float,
    "test_accuracy": float,
    "point": str,
    "source": str,
}
_RUN_KEY: Final = ("data_set", "model", "seed", "method", "budget", "settings", "method_settings")
_PREDICTION_SCHEMA: Final = pa.schema(
    [
        ("point", pa.dictionary(pa.int32(), pa.string())),
        ("example_id", pa.string()),
        ("label", pa.dictionary(pa.int32(), pa.string())),
        ("correct", pa.bool_()),
        ("loss", pa.float32()),
    ]
)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder: of two studies that write the same tables each would lose the other's rows.

    Raises:
        StudyError: another study holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise StudyError(f"{folder}: another study is active there; wait for it, or name another folder") from None
    try:
        yield
    finally:
        os.close(held)


class Tables:
    """The study's folder of tables, read once; what is kept is written at once.

    Args:
        folder: where they lie.

    Attributes:
        runs: a row per fine-tune that has ended; key: data set, model, seed, method, budget and settings.
        choices: a row per data set, model and rule; no boundary where the plan could not evaluate the selector.
        intervals: a row per data set, model, source and place: what was predicted and what was observed.
        rates: a row per learning rate whose outcome is known, of fine-tunes that were trained at several.
        settings: settings by their digest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = _read(folder / RUNS, _RUN_COLUMNS)
        self.choices = _read(folder / CHOICES, _CHOICE_COLUMNS)
        self.intervals = _read(folder / INTERVALS, _INTERVAL_COLUMNS)
        self.rates = _read(folder / RATES, _RATE_COLUMNS)
        path = folder / SETTINGS
        self.settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def keep_settings(self, value: Any) -> str:
        """Keep settings under their digest, and return it."""
        name = digest(value)
        if name not in self.settings:
            self.settings = {**self.settings, name: value}
            text = json.dumps(self.settings, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            write_aside(self.folder / SETTINGS, lambda aside: aside.write_text(text, encoding="utf-8"))
        return name

    def keep_runs(self, fine_tunes: Sequence[tuple[Row, pa.Table]], instead_of: Sequence[Row] = ()) -> None:
        """Keep rows of fine-tunes and their predictions, in place of older ones of the same keys, and of these.

        The outcomes of every rate, ``outcomes`` of a row, take the place of the same rates' of the same fine-tune.
        """
        rows = [
            _whole({**row, "point": digest([row[name] for name in _RUN_KEY])}, _RUN_COLUMNS) for row, _ in fine_tunes
        ]
        points = {row["point"] for row in [*rows, *instead_of]}
        parts = [_predictions(row, said) for row, (_, said) in zip(rows, fine_tunes, strict=True)]
        path = self.folder / PREDICTIONS
        if path.exists():
            before = pq.read_table(path).cast(_PREDICTION_SCHEMA)
            replaced = pc.is_in(before["point"].cast(pa.string()), pa.array(points, pa.string()))
            parts = [before.filter(pc.invert(replaced)), *parts]
        said = pa.concat_tables(parts).unify_dictionaries()
        write_aside(path, lambda aside: pq.write_table(said, aside, compression="zstd"))
        self.keep_rates(
            [
                {**row, **one}
                for row, (found, _) in zip(rows, fine_tunes, strict=True)
                for one in found.get("outcomes", [])
            ]
        )
        # Last: a row is there only when its predictions are.
        self.runs = [*(old for old in self.runs if old["point"] not in points), *rows]
        _write_rows(self.folder / RUNS, _RUN_COLUMNS, self.runs)

    def predictions(self, row: Row) -> pa.Table:
        """What a kept fine-tune said of the test examples."""
        said = pq.read_table(self.folder / PREDICTIONS, filters=[("point", "==", row["point"])])
        return said.drop_columns(["point"])

    def outcomes(self, row: Row) -> list[Row]:
        """What is known of the rates that a kept fine-tune was tried at."""
        rates = set(map(float, row["rates"].split()))
        return [one for one in self.rates if one["point"] == row["point"] and one["learning_rate"] in rates]

    def keep_rates(self, rows: Sequence[Row]) -> None:
        """Keep outcomes of learning rates, in place of older ones of the same fine-tunes and rates."""
        if rows:
            whole = [_whole(row, _RATE_COLUMNS) for row in rows]
            self.rates = _merged(self.rates, whole, ("point", "learning_rate"))
            _write_rows(self.folder / RATES, _RATE_COLUMNS, self.rates)

    def keep_choices(self, rows: Sequence[Row], intervals: Sequence[Row]) -> None:
        """Keep rules' choices, and predicted intervals, in place of older ones of the same rules and sources."""
        whole = [_whole(row, _INTERVAL_COLUMNS) for row in intervals]
        self.intervals = _merged(self.intervals, whole, ("data_set", "model", "source"))
        self.choices = _merged(
            self.choices, [_whole(row, _CHOICE_COLUMNS) for row in rows], ("data_set", "model", "rule")
        )
        _write_rows(self.folder / INTERVALS, _INTERVAL_COLUMNS, self.intervals)
        _write_rows(self.folder / CHOICES, _CHOICE_COLUMNS, self.choices)


def outcome_of(row: Row) -> Row:
    """The outcome of the learning rate that a fine-tune's row is the result of."""
    same = {name: row[name] for name in ("learning_rate", "validation_loss", "validation_accuracy")}
    return {**same, "test_loss": row["loss"], "test_accuracy": row["quality"]}


def _predictions(row: Row, said: pa.Table) -> pa.Table:
    named = said.append_column("point", pa.array([row["point"]] * len(said)))
    return named.select(_PREDICTION_SCHEMA.names).cast(_PREDICTION_SCHEMA)


def _whole(row: Row, columns: Mapping[str, type]) -> Row:
    """A row with all columns, each of its type: of a row to be written and of one that is read."""
    return {name: _value(kind, row.get(name)) for name, kind in columns.items()}


def _merged(old: Sequence[Row], new: Sequence[Row], key: Sequence[str]) -> list[Row]:
    replaced = {tuple(row[name] for name in key) for row in new}
    return [*(row for row in old if tuple(row[name] for name in key) not in replaced), *new]


def _read(path: Path, columns: Mapping[str, type]) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [_whole(row, columns) for row in csv.DictReader(file)]


def _value(kind: type, value: Any) -> Any:
    """A value of its column's type, written or not yet: an absent text is empty, anything else absent is None."""
    if value in (None, ""):
        return "" if kind is str else None
    return kind(value)


def _write_rows(path: Path, columns: Mapping[str, type], rows: Sequence[Row]) -> None:
    def fill(aside: Path) -> None:
        with aside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_aside(path, fill)


def write_aside(path: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill`` write a file aside, and give it its name in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    fill(aside)
    os.replace(aside, path)
