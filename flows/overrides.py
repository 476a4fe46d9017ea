"""Parameters of one run: set in ``params.yaml`` while it works, taken back when it ends."""

import difflib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMS_FILE = Path("params.yaml")
_JOURNAL = Path(".dvc/tmp/flow-params.json")
_TWO_SPELLINGS = {"data.balance"}  # a word, or true and false as in release 0.1.0: the stages check it
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


class OverrideError(Exception):
    """An override that ``params.yaml`` has no place for; the text names the key and what is allowed."""


def parse(assignments: list[str]) -> dict[str, Any]:
    """Read ``key=value`` words of a command line; values are YAML 1.2, as in ``params.yaml``.

    Raises:
        OverrideError: a word without ``=``, or a value that is no YAML.
    """
    overrides = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise OverrideError(f"{word!r}: expected key=value, for example finetune.epochs=3")
        try:
            overrides[key] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            raise OverrideError(f"{key}: not valid YAML: {' '.join(str(error).split())}") from None
    return overrides


@contextmanager
def overridden(project: Path, overrides: Mapping[str, Any]) -> Iterator[None]:
    """Hold ``params.yaml`` with the overrides in it.

    The file's own bytes come back at the end, also by :func:`take_back` after a run that was killed.

    Raises:
        OverrideError: a key is unknown, or a value of another kind than the one in the file.
    """
    if not overrides:
        yield
        return
    path = project / PARAMS_FILE
    if not path.exists():
        raise OverrideError(f"{PARAMS_FILE}: no such file, so no parameter can be overridden")
    before = _read(path)
    during = changed(before, overrides)
    _write(project / _JOURNAL, json.dumps({"before": before, "during": during}))
    _write(path, during)
    try:
        yield
    finally:
        take_back(project)


def take_back(project: Path) -> bool:
    """Undo the overrides of a run that did not do so itself; says whether there were any.

    A file that somebody has edited since is left as it is.
    """
    try:
        journal = json.loads(_read(project / _JOURNAL))
    except FileNotFoundError:
        return False
    path = project / PARAMS_FILE
    untouched = path.exists() and path.read_bytes() == journal["during"].encode()
    if untouched:
        _write(path, journal["before"])
    (project / _JOURNAL).unlink()
    return untouched


def changed(text: str, overrides: Mapping[str, Any]) -> str:
    """Return a parameter file's text with values replaced; comments and order stay.

    The kind of a value is checked here, its range by the stages: each validates the whole file
    before it does anything.

    Raises:
        OverrideError: see :func:`overridden`; every fault is named at once.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    try:
        params = yaml.load(text)
    except YAMLError as error:
        raise OverrideError(f"{PARAMS_FILE}: not valid YAML: {' '.join(str(error).split())}") from None
    faults = [fault for key, value in overrides.items() if (fault := _set(params, key, value))]
    if faults:
        raise OverrideError("; ".join(faults))
    target = io.StringIO()
    yaml.dump(params, target)
    return target.getvalue()


def _set(params: Any, key: str, value: Any) -> str | None:
    *groups, name = key.split(".")
    place = params
    for group in groups:
        if not isinstance(place, dict) or group not in place:
            return _unknown(key, group, place)
        place = place[group]
    # Deeper than group.name stand mappings whose keys are the user's own (label words, learning rates).
    if not isinstance(place, dict) or (name not in place and len(groups) < 2):
        return _unknown(key, name, place)
    fault = None if key in _TWO_SPELLINGS else _other_kind(place.get(name), value)
    if fault:
        return f"{key} = {value!r}: expected {fault}"
    place[name] = value
    return None


def _unknown(key: str, name: str, place: Any) -> str:
    known = sorted(place) if isinstance(place, dict) else []
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known there: {', '.join(known) or 'nothing'}"
    return f"{key}: unknown parameter; {hint}"


def _other_kind(present: Any, value: Any) -> str | None:
    if present is None or value is None:
        return None
    if isinstance(value, list) and not isinstance(present, list | dict):  # a grid in place of one value
        return next((fault for item in value if (fault := _other_kind(present, item))), None)
    if isinstance(present, list) and value and not isinstance(value, list | dict):
        return _KINDS[list]
    kinds = [next(kind for kind in _KINDS if isinstance(item, kind)) for item in (present, value)]
    names = [_KINDS[kind] for kind in kinds]
    return None if names[0] == names[1] else names[0]


def _read(path: Path) -> str:
    """A file's text with its own line ends.

    Raises:
        OverrideError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise OverrideError(f"{path.name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()  # a link stays one
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
