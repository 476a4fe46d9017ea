"""What stages write for others to read, typed: one class and one reader for each artifact."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from salf.cost import ModelShape
from salf.errors import UserError
from salf.files import read_json, require

Artifact = TypeVar("Artifact", bound=BaseModel)


class ParameterSizes(BaseModel):
    """Numbers of parameters by part."""

    embedding: int
    per_layer: list[int]
    norm: int
    head: int


class BaseIdentity(BaseModel):
    """``base.json``, as far as a plan reads it; ``parameter_names`` are the loaded network's."""

    name: str
    weights_sha256: str
    parameters: ParameterSizes
    parameter_names: list[str]


@dataclass(frozen=True)
class BaseFacts:
    """The base model without its weights."""

    identity: BaseIdentity
    family: str
    shape: ModelShape

    @property
    def total_parameters(self) -> int:
        """All parameters, a tied head counted once."""
        sizes = self.identity.parameters
        return sizes.embedding + sum(sizes.per_layer) + sizes.norm + self._own_head

    def trained_parameters(self, boundary: int) -> int:
        """Parameters that train above a boundary; 0 trains all."""
        if boundary == 0:
            return self.total_parameters
        sizes = self.identity.parameters
        return sum(sizes.per_layer[boundary:]) + sizes.norm + self._own_head

    @property
    def _own_head(self) -> int:
        return 0 if self.shape.tied_head else self.identity.parameters.head


class SplitSize(BaseModel):
    """Size of a prepared split; ``tokens`` is what a forward pass sees."""

    rows: int
    tokens: int
    answer_tokens: int


class PreparedSizes(BaseModel):
    """``meta.json``, as far as a plan reads it."""

    splits: dict[str, SplitSize]
    shared_prefix_tokens: int


def read_base(folder: Path) -> BaseFacts:
    """Read what ``dvc repro base`` wrote, but for the weights.

    Raises:
        UserError: something is missing or damaged.
    """
    config = read_json(require(folder / "config.json", made_by="base"))
    base = BaseFacts(
        identity=checked(BaseIdentity, folder / "base.json", made_by="base"),
        family=str(config.get("model_type")),
        shape=ModelShape.from_config(config),
    )
    held = set(base.identity.parameters.per_layer)
    if held != {base.shape.layer_parameters}:
        weights = ", ".join(f"{size:,}" for size in sorted(held))
        raise UserError(
            f"{folder}: the cost model reads {base.shape.layer_parameters:,} parameters a layer, the "
            f"weights hold {weights}: layers of model type {base.family!r} are not built as it takes them to be"
        )
    return base


def read_sizes(prepared: Path) -> PreparedSizes:
    """Read the sizes of the prepared splits.

    Raises:
        UserError: the file is missing or damaged, or has no training split.
    """
    path = prepared / "meta.json"
    sizes = checked(PreparedSizes, path, made_by="prepare")
    if "train" not in sizes.splits:
        raise UserError(f"{path}: no training split; dvc repro prepare")
    return sizes


def checked(kind: type[Artifact], path: Path, made_by: str) -> Artifact:
    """Read a JSON artifact as a record.

    Raises:
        UserError: it is missing or damaged; names the stage that makes it.
    """
    raw: Any = read_json(require(path, made_by))
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path}: {where}: {fault['msg']}; run again: dvc repro {made_by}") from None
