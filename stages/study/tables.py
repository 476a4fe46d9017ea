"""The study's tables: fine-tunes with their test predictions, outcomes of rates, and what release 0.1.0 chose.

Rows name the settings that decided them by digest; ``settings.json`` holds these. Each file is replaced in one step,
so that a killed study leaves whole tables.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from salf.errors import UserError, reading
from salf.files import replacing_file, write_text
from stages.study.settings import digest

Row = dict[str, Any]
RUN_KEY: Final = ["data_set", "model", "seed", "method", "budget", "settings", "method_settings"]
_PREDICTIONS: Final = pa.schema(
    [
        ("point", pa.dictionary(pa.int32(), pa.string())),
        ("example_id", pa.string()),
        ("label", pa.dictionary(pa.int32(), pa.string())),
        ("correct", pa.bool_()),
        ("loss", pa.float32()),
    ]
)


def columns(text: str) -> dict[str, str]:
    """Return columns with their pandas types, from words ``name:type``; a name alone holds text."""
    return {name: kind or "str" for name, _, kind in (word.partition(":") for word in text.split())}


COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "runs": columns(
        "point data_set group measure model seed:Int64 method boundary:Int64 layers:Int64 budget epochs:float rates "
        "learning_rate:float quality:float macro_f1:float loss:float validation_loss:float validation_accuracy:float "
        "validation_examples:Int64 flops:Int64 trained_parameters:Int64 test_examples:Int64 seconds:float "
        "seconds_wall:float machine cores:Int64 device dtype data_sha256 model_sha256 settings method_settings code"
    ),
    "rates": columns(
        "data_set model seed:Int64 method budget learning_rate:float validation_loss:float validation_accuracy:float "
        "test_loss:float test_accuracy:float point source"
    ),
    "choices": columns(
        "data_set model rule selector boundary:Int64 layers:Int64 deciding_share:float reason scores settings machine "
        "cores:Int64 seconds:float"
    ),
    "priors": columns("data_set label rows:Int64 share:float"),
    "kept": columns(
        "data_set model seed:Int64 method budget keep validation_loss:float validation_accuracy:float test_loss:float "
        "test_accuracy:float point"
    ),
    "forgetting": columns("data_set model seed:Int64 method text tokens:Int64 before:float after:float point"),
}


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read a table with its columns; missing texts are empty, a missing table has no rows."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return _typed(pd.DataFrame(), name)
    with reading(path, "damaged table"):
        return _typed(
            pd.read_csv(path, dtype={key: "str" for key, kind in COLUMNS[name].items() if kind == "str"}), name
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Read settings by their digest."""
    path = folder / "settings.json"
    with reading(path, "damaged"):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock a folder, because two studies that write the same tables would lose each other's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another study is active there; wait for it, or name another folder") from None
        yield
    finally:
        os.close(held)


class Tables:
    """The tables in a folder, and the settings by their digest: read once, written whenever rows are added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs, self.rates, self.kept, self.forgetting, self.choices = (
            read_table(folder, name) for name in ("runs", "rates", "kept", "forgetting", "choices")
        )
        self.settings = read_settings(folder)

    def keep_settings(self, value: Any) -> str:
        """Save settings under their digest, and return it."""
        name = digest(value)
        if name not in self.settings:
            self.settings = {**self.settings, name: value}
            text = json.dumps(self.settings, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            write_text(self.folder / "settings.json", text)
        return name

    def keep_run(self, row: Row, said: pd.DataFrame) -> None:
        """Save a fine-tune with its predictions; they replace rows of the same key."""
        row = {**row, "point": digest([row[name] for name in RUN_KEY])}
        self._keep_predictions(said.assign(point=row["point"]))
        for name, key in (("rates", "learning_rate"), ("kept", "keep"), ("forgetting", "text")):
            if more := [{**row, **one} for one in row.get("more", {}).get(name, [])]:
                setattr(self, name, self._keep(name, getattr(self, name), more, ["point", key]))
        self.runs = self._keep("runs", self.runs, [row], ["point"])

    def _keep(self, name: str, old: pd.DataFrame, rows: Sequence[Row], key: list[str]) -> pd.DataFrame:
        """Write a table in which rows replace those of the same key, and return it."""
        found = _replaced(old, _typed(pd.DataFrame(rows), name), key)
        with replacing_file(self.folder / f"{name}.csv") as aside:
            found.to_csv(aside, index=False)
        return found

    def _keep_predictions(self, new: pd.DataFrame) -> None:
        path = self.folder / "predictions.parquet"
        found = _replaced(pd.read_parquet(path), new, ["point"]) if path.exists() else new
        with replacing_file(path) as aside:
            found.to_parquet(aside, index=False, compression="zstd", schema=_PREDICTIONS)


def _replaced(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The rows of both, without the old ones whose key is among the new."""
    stays = ~pd.MultiIndex.from_frame(old[key]).isin(pd.MultiIndex.from_frame(new[key]))
    return pd.concat([old[stays], new], ignore_index=True) if stays.any() else new


def records(table: pd.DataFrame) -> list[Row]:
    """Return a table's rows; what is missing is ``None``."""
    return [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in table.to_dict("records")]


def _typed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    kinds = dict(COLUMNS[name])
    texts = [key for key, kind in kinds.items() if kind == "str"]
    return table.reindex(columns=list(kinds)).astype(kinds).fillna(dict.fromkeys(texts, ""))
