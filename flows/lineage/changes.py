"""What differs between a stage as it was locked and as it would run now."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.lineage.artifacts import named
from flows.lineage.lock import Entry
from flows.lineage.project import Declared, Project

_ABSENT = object()
_LONGEST = 120  # characters of a value that are shown


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        kind: ``command``, ``parameter``, ``input`` or ``output``.
        name: the parameter's or the path's name; empty for the command.
        text: what happened to it.
    """

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.text}" if self.name else f"{self.kind}: {self.text}"


def changes_since(project: Project, declared: Declared, entry: Entry) -> list[Change]:
    """Return what changed since the entry was locked, outputs left out: they are another question."""
    found = []
    if entry.get("cmd") != declared.command:
        found.append(Change("command", "", f"was `{entry.get('cmd')}`, is `{declared.command}`"))
    found += compare_params(entry.get("params") or {}, declared.params)
    locked = dict(named(entry, "deps"))
    for path in declared.deps:
        now = project.name_of(path)
        if path not in locked:
            found.append(Change("input", path, "is new"))
        elif now is None:
            found.append(Change("input", path, "is missing"))
        elif now != locked[path]:
            found.append(Change("input", path, f"was {locked[path]}, is {now}"))
    found += [Change("input", path, "is read no more") for path in locked if path not in declared.deps]
    return found


def compare_params(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return the differences between two sets of parameters, file → name → value, by dotted name."""
    return compare_values(_all_leaves(old), _all_leaves(new), "parameter")


def compare_values(old: Mapping[str, Any], new: Mapping[str, Any], kind: str) -> list[Change]:
    """Return what was added, removed or given another value, as changes of that kind."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before is _ABSENT:
            found.append(Change(kind, name, f"is new: {_shown(after)}"))
        elif after is _ABSENT:
            found.append(Change(kind, name, f"is gone, was {_shown(before)}"))
        elif before != after:
            found.append(Change(kind, name, f"was {_shown(before)}, is {_shown(after)}"))
    return found


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into dotted name → value; lists stay whole."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _all_leaves(params: Mapping[str, Any]) -> dict[str, Any]:
    # The usual file goes without saying; another one is named.
    found: dict[str, Any] = {}
    for file, values in params.items():
        found |= leaves(values) if file == "params.yaml" else {f"{file}:{k}": v for k, v in leaves(values).items()}
    return found
