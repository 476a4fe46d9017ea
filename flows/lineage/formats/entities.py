"""How the entities of an RO-Crate are named and typed."""

from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from flows.lineage.formats.results import Artifact

Entity = dict[str, Any]

ELSEWHERE: Final = "CreativeWork"  # what was read from outside the project is described, not contained
_FORMATS: Final = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".lock": "text/plain",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".py": "text/x-python",
    ".safetensors": "application/octet-stream",
    ".yaml": "application/yaml",
}


def kind_of(artifact: Artifact) -> str:
    """The type of an artifact's entity."""
    if not artifact.is_inside:
        return ELSEWHERE
    return "Dataset" if artifact.is_folder else "File"


def path_of(artifact: Artifact) -> str:
    """The id of an artifact's entity: its path in the crate, as a URI."""
    if not artifact.is_inside:
        return fragment("elsewhere", artifact.md5)
    return quote(artifact.path) + ("/" if artifact.is_folder else "")


def fragment(*names: str) -> str:
    """The id of something that is no file: ``#`` and its names."""
    return "#" + "/".join(quote(name, safe="") for name in names)


def ref(identifier: str) -> dict[str, str]:
    """A reference to an entity."""
    return {"@id": identifier}


def format_of(path: str) -> str:
    """The media type of a file, by its name."""
    return _FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream")


def type_of(value: Any) -> str:
    """The type of a parameter, in schema.org's words."""
    kinds: dict[type, str] = {bool: "Boolean", int: "Integer", float: "Float", str: "Text"}
    return kinds.get(type(value), "PropertyValue")


def flat(entity: Entity) -> Entity:
    """An entity in RO-Crate's form: no empty list, and one value without brackets."""
    return {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in entity.items()
        if value != []
    }


def time_of(at: str) -> str:
    """A record's time as the profile wants it: milliseconds, and the zone as an offset."""
    return f"{at[:23]}+00:00"
