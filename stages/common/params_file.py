"""Reads a file of parameters; every fault of it becomes one line that names the key and what is allowed."""

import difflib
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.command import UserError

_DEEPEST: Final = 100

Groups = TypeVar("Groups", bound=BaseModel)


def read_validated(path: Path, kind: type[Groups]) -> Groups:
    """Read a file (YAML 1.2, as DVC reads it: ``1e-4`` is a number) as the groups that ``kind`` declares.

    Raises:
        UserError: the file is missing, is no YAML, or breaks a rule; every fault is named at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if max(accumulate((sign in "[{") - (sign in "]}") for sign in text), default=0) > _DEEPEST:
            raise RecursionError(f"nested more than {_DEEPEST} deep")  # the parser would take minutes to say so
        raw = YAML(typ="safe", pure=True).load(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder") from None
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected groups of parameters, found {type(raw).__name__}")
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_fault_lines(path, error.errors(), kind))) from None


def _fault_lines(path: Path, faults: Iterable[ErrorDetails], kind: type[BaseModel]) -> list[str]:
    lines: list[str] = []
    for fault in faults:
        names = [str(part) for part in fault["loc"] if part != "[key]"]
        key = ".".join(names)
        if fault["type"] == "extra_forbidden":
            text = f"{path}: {key}: unknown parameter{_did_you_mean(names, kind)}"
        elif fault["type"] == "missing":
            text = f"{path}: {key}: missing"
        else:
            where = f"{key} = {fault['input']!r}: " if key else ""
            text = f"{path}: {where}{fault['msg'].removeprefix('Value error, ')}"
        lines.append(text)
    return lines


def _did_you_mean(names: list[str], group: type[BaseModel]) -> str:
    for name in names[:-1]:
        inner = group.model_fields[name].annotation if name in group.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ""
        group = inner
    known = sorted(group.model_fields)
    close = difflib.get_close_matches(names[-1], known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
