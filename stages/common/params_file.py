"""Reads a file of parameters; every fault of it becomes one line that names the key and what is allowed."""

import difflib
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Final, TypeGuard, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from salf.errors import UserError

_DEEPEST: Final = 100

Groups = TypeVar("Groups", bound=BaseModel)


def read_validated(path: Path, kind: type[Groups]) -> Groups:
    """Read a file (YAML 1.2, as DVC reads it: ``1e-4`` is a number) as the groups that ``kind`` declares."""
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


def _fault_lines(path: Path, faults: Iterable[ErrorDetails], kind: type[BaseModel]) -> Iterator[str]:
    for fault in faults:
        names = [str(part) for part in fault["loc"] if part != "[key]"]
        key = ".".join(names)
        if fault["type"] == "extra_forbidden":
            yield f"{path}: {key}: unknown parameter{_did_you_mean(names, kind)}"
        elif fault["type"] == "missing":
            field = dict(_fields(kind)).get(key)  # none in a group whose name the user chose
            yield f"{path}: {key}: missing{f': {_expected(field)}' if field else ''}"
        else:
            where = f"{key} = {fault['input']!r}: " if key else ""
            yield f"{path}: {where}{fault['msg'].removeprefix('Value error, ')}"


def _did_you_mean(names: list[str], kind: type[BaseModel]) -> str:
    fields, group, name = dict(_fields(kind)), ".".join(names[:-1]), names[-1]
    known = sorted(field.rpartition(".")[2] for field in fields if field.rpartition(".")[0] == group)
    elsewhere = [field for field in fields if field.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, known, n=1) or elsewhere
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _expected(field: FieldInfo) -> str:
    """A field's allowed values, in the words of the error message."""
    kind: Any = field.annotation
    if _is_group(kind):
        return f"a group of {', '.join(kind.model_fields)}"
    try:
        TypeAdapter(Annotated[kind, field]).validate_python(object())
    except ValidationError as error:
        return " or ".join(fault["msg"] for fault in error.errors())
    return "any value"


def _fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of the groups by its dotted name, groups included."""
    for name, field in kind.model_fields.items():
        shown = field.alias or name
        yield prefix + shown, field
        if _is_group(field.annotation):
            yield from _fields(field.annotation, f"{prefix}{shown}.")


def _is_group(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
