"""Measurements kept on disk as they are made: a benchmark that was killed goes on where it stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from salf.files import read_json, write_json

Value = TypeVar("Value")  # anything that JSON holds


class Kept:
    """Name → measured value, in one JSON file that is replaced after each measurement."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._values: dict[str, Any] = read_json(file) if file.exists() else {}

    def once(self, name: str, measure: Callable[[], Value]) -> Value:
        """The kept value, or else that of ``measure()``, which is then kept."""
        if name not in self._values:
            self._values[name] = measure()
            write_json(self.file, self._values)
        value: Value = self._values[name]
        return value
