"""Configurations: published ones by name (their numbers, no weights), or anybody's ``config.json``."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from salf.cost import ModelShape
from salf.errors import UserError
from salf.files import read_json

_FILE: Final = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Configuration:
    """A model on paper.

    Attributes:
        name: as it was asked for.
        origin: the hub's name, or the file.
        shape: its sizes.
    """

    name: str
    origin: str
    shape: ModelShape


def configuration(given: str) -> Configuration:
    """A published configuration by its name, or a ``config.json`` by its path or folder.

    Raises:
        UserError: it is neither, or its cost cannot be counted; says what is known or missing.
    """
    path = Path(given)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return Configuration(given, str(path), _shape(read_json(path), str(path)))
    known = published()
    if given not in known:
        close = difflib.get_close_matches(given.lower(), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise UserError(f"{given}: neither a published configuration nor a config.json or its folder; {hint}")
    entry = known[given]
    return Configuration(given, entry["origin"], _shape(entry["config"], given))


@cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """Name → ``origin``, ``parameters`` as published, and the ``config`` entries that sizes follow from."""
    entries: Mapping[str, Mapping[str, Any]] = read_json(_FILE)
    return entries


def _shape(config: Any, where: str) -> ModelShape:
    if not isinstance(config, dict):
        raise UserError(f"{where}: expected the entries of a config.json, found {type(config).__name__}")
    try:
        return ModelShape.from_config(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
