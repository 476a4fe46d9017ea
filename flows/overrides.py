"""Parameters of one run: set in ``params.yaml`` while it works, and removed when it ends."""

import difflib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from salf.errors import UserError, reading
from salf.files import write_text

PARAMS_FILE: Final = Path("params.yaml")
_JOURNAL: Final = Path(".dvc/tmp/flow-params.json")


def parse(assignments: list[str]) -> dict[str, Any]:
    """Read ``key=value`` words of a command line; values are YAML 1.2, as in ``params.yaml``."""
    overrides = {}
    for word in assignments:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UserError(f"{word!r}: expected key=value, for example finetune.epochs=3")
        read_value = _load(YAML(typ="safe", pure=True), value, key)
        with reading(key, "cannot be passed on"):  # Prefect takes what JSON can hold
            overrides[key] = json.loads(json.dumps(read_value, default=str))
    return overrides


def read(project: Path) -> str:
    """Return the text of the project's parameter file, line ends and byte-order mark included."""
    with reading(PARAMS_FILE):
        return (project / PARAMS_FILE).read_bytes().decode()


def loaded(text: str) -> Any:
    """Return the parameters of a file's text."""
    return _load(YAML(typ="safe", pure=True), text, str(PARAMS_FILE))


@contextmanager
def overridden(project: Path, overrides: Mapping[str, Any]) -> Iterator[None]:
    """Hold ``params.yaml`` with the overrides in it.

    The file's own bytes come back at the end; after a killed run :func:`take_back` restores them.
    """
    if not overrides:
        yield
        return
    path, before = (project / PARAMS_FILE).resolve(), read(project)  # a link stays one
    during = changed(before, overrides)
    write_text(project / _JOURNAL, json.dumps({"before": before, "during": during}))
    write_text(path, during)
    try:
        yield
    finally:
        take_back(project)


def take_back(project: Path) -> bool:
    """Remove the overrides of a run that did not do so itself, and return whether there were any.

    A file that somebody has edited since is left unchanged.
    """
    try:
        journal = json.loads((project / _JOURNAL).read_bytes())
    except FileNotFoundError:
        return False
    path = (project / PARAMS_FILE).resolve()
    untouched = path.exists() and path.read_bytes() == journal["during"].encode()
    if untouched:
        write_text(path, journal["before"])
    (project / _JOURNAL).unlink()
    return untouched


def changed(text: str, overrides: Mapping[str, Any]) -> str:
    """Return a parameter file's text with values replaced; comments and order stay.

    Only the names are checked here. The stages check the values: each validates the whole file first.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    ends = "\r\n" if "\r\n" in text else "\n"  # to YAML they are the same; comments would keep half of one
    params = _load(yaml, text.replace(ends, "\n"), str(PARAMS_FILE))
    faults = [fault for key, value in overrides.items() if (fault := _set(params, key, value))]
    if faults:
        raise UserError("; ".join(faults))
    target = io.StringIO()
    yaml.dump(params, target)
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    return mark + target.getvalue().removeprefix("\ufeff").replace("\n", ends)


def _load(yaml: YAML, text: str, name: str) -> Any:
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None


def _set(params: Any, key: str, value: Any) -> str | None:
    """Set a value in its place; returns the fault if there is one."""
    *groups, last = key.split(".")
    place = params
    for depth, name in enumerate([*groups, last]):
        # Deeper than group.name are mappings whose keys are the user's own (label words, learning rates).
        own = depth == len(groups) >= 2
        if not isinstance(place, dict) or (name not in place and not own):
            known = sorted(place) if isinstance(place, dict) else []
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known there: {', '.join(known) or 'nothing'}"
            return f"{key}: unknown parameter; {hint}"
        if depth < len(groups):
            place = place[name]
    place[last] = value
    return None
