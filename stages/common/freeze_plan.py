"""The freeze plan: which layers of which model train, why, and what that costs; and how to apply it.

A plan is one JSON file that travels with every model made by it. Three lines use it anywhere::

    plan = FreezePlan.load("data/plan/freeze_plan.json")
    trained = plan.apply(model)  # sets requires_grad; every other parameter is frozen
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

Layers count from 1, as in the paper (Gu et al., arXiv 2406.11753): a boundary k freezes the embeddings
and layers 1..k and trains layers k+1..L and the final norm. Boundary 0 freezes nothing, embeddings
included. A head of its own always trains; a tied head *is* the embedding matrix and shares its fate.

The JSON Schema beside this file is generated: ``python -c "from stages.common.freeze_plan import
write_schema; write_schema()"``.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.common.artifacts import read_json, write_json
from stages.common.command import UserError
from stages.common.models.families import Family, family_of
from stages.common.params import GainName, Quantity, SelectorName

SCHEMA_VERSION: Final = 1
FILE_NAME: Final = "freeze_plan.json"
SCHEMA_FILE: Final = Path(__file__).with_suffix(".schema.json")

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A frozen part of the artifact; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PlannedModel(Record):
    """The model that the plan is for; enough to recognise another one."""

    name: str
    weights_sha256: str
    family: str
    layers: Positive
    hidden: Positive
    vocabulary: Positive
    tied_head: bool


class ParameterCounts(Record):
    """Parameters of the model by their fate, a tied head counted once."""

    frozen: Natural
    trained: Natural
    total: Positive


class Certainty(Record):
    """How sure the choice is; the numbers are null where the selector does not measure.

    ``win_share`` is the share of bootstrap resamples of the traced examples in which this boundary has
    the largest gain; ``value``, ``low`` and ``high`` are that gain and its interval.
    """

    win_share: Probability | None
    value: float | None
    low: float | None
    high: float | None
    words: str


class RunnerUp(Record):
    """Another boundary that the same rule might have chosen."""

    boundary: Natural
    value: float
    win_share: Probability


class FrontierPoint(Record):
    """What training above one boundary costs, and what the trace says that it can still change.

    Attributes:
        flops_frozen: forward pass of the frozen layers over the data, once.
        flops_epoch: one epoch of training above the boundary.
        flops: the whole fine-tune with the frozen layers' output cached:
            flops_frozen + epochs · flops_epoch, for the cost model's epochs.
        flops_uncached: epochs · (flops_frozen + flops_epoch).
        flops_share, flops_share_uncached: of the same at boundary 0; the uncached share is also that
            of a single epoch.
        flops_share_many_epochs: what flops_share falls to as epochs are added.
        activation_bytes: kept for back-propagation in one batch, an approximation.
        cache_bytes: the boundary's hidden states of the whole training split.
        observed: mean of the plan's quantity at space ``boundary`` in the trace.
        predicted: the best law's value there; null where no law fits.
        remaining_reduction: share of the whole reduction of the quantity (spaces 1 to L) that happens
            above the boundary; null where there is none to share out.
        efficient: no other boundary costs as little and leaves as much of the reduction to train.
    """

    boundary: Natural
    trained_layers: Natural
    trained_parameters: Natural
    flops: Natural
    flops_uncached: Natural
    flops_frozen: Natural
    flops_epoch: Natural
    flops_share: float
    flops_share_uncached: float
    flops_share_many_epochs: float
    optimizer_bytes: Natural
    gradient_bytes: Natural
    activation_bytes: Natural
    cache_bytes: Natural
    observed: float
    predicted: float | None
    remaining_reduction: float | None
    efficient: bool


class CostModel(Record):
    """The sums behind the frontier's costs (see ``stages/common/cost.py``) and what was assumed."""

    epochs: Positive
    batch_rows: Positive
    value_bytes: Positive
    rows: Positive
    queries: Positive
    attended: Positive
    positions: Positive
    formula: str
    assumptions: list[str]


class Evidence(Record):
    """SHA-256 of what the choice rests on."""

    law_sha256: str
    gains_sha256: str
    trace_sha256: str


class Exports(Record):
    """The plan in the words of other tools; ``parameter_names`` are Hugging Face's own."""

    peft: dict[str, Any]
    axolotl: list[str]
    llama_factory: dict[str, Any]
    parameter_names: dict[Literal["trained"], list[str]]


class CausalModel(Protocol):
    """What applying a plan needs of a Hugging Face ``...ForCausalLM``."""

    def named_parameters(self) -> Iterable[tuple[str, Any]]:
        """Names and parameters, a tied head once."""


class FreezePlan(Record):
    """Which layers train; see the module's docstring. Layers count from 1."""

    schema_version: Literal[1]
    model: PlannedModel
    selector: SelectorName
    quantity: Quantity
    gain: GainName
    boundary: Natural
    frozen_layers: list[Positive]
    trained_layers: list[Positive]
    embeddings_trained: bool
    norm_trained: bool
    head_trained: bool
    head_note: str
    parameters: ParameterCounts
    reason: str
    certainty: Certainty
    fallback: str | None
    runners_up: list[RunnerUp]
    boundaries: dict[SelectorName, Natural]
    frontier: list[FrontierPoint]
    cost_model: CostModel
    evidence: Evidence
    exports: Exports

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan: the JSON file, or a folder (a plan's or a fine-tuned model's) that holds one.

        Raises:
            UserError: there is none, it is damaged, or another version of this program wrote it.
        """
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        raw = read_json(file)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{file}: freeze plan of version {version!r}, this program reads version {SCHEMA_VERSION}; "
                "make it again: dvc repro plan"
            )
        try:
            return cls.model_validate_json(json.dumps(raw))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "plan"
            raise UserError(f"{file}: damaged freeze plan: {where}: {fault['msg']}; dvc repro plan") from None

    def save(self, path: str | Path) -> None:
        """Write the plan as canonical JSON."""
        write_json(Path(path), self.model_dump(mode="json"))

    def boundary_of(self, scope: SelectorName | None = None) -> int:
        """The plan's own boundary, or that of a named selector."""
        return self.boundary if scope is None else self.boundaries[scope]

    def apply(self, model: CausalModel, scope: SelectorName | None = None) -> list[Any]:
        """Freeze and unfreeze a model's parameters as planned.

        Args:
            model: a Hugging Face causal language model, not yet wrapped (by PEFT, DDP...).
            scope: another selector's boundary instead of the plan's own.

        Returns:
            The trained parameters, for the optimizer: frozen ones would still be given state and decay.

        Raises:
            UserError: the model is not the planned one; says in what it differs.
        """
        named = dict(model.named_parameters())
        family = family_of(self.model.family)
        differences = _differences(self, family, named)
        if differences:
            raise UserError(f"the freeze plan is for {self.model.name}, this model differs: {'; '.join(differences)}")
        chosen = set(trained_names(named, family, self.boundary_of(scope), tied_head=self.model.tied_head))
        for name, parameter in named.items():
            parameter.requires_grad = name in chosen
        return [parameter for name, parameter in named.items() if name in chosen]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        depth = self.model.layers
        if self.frozen_layers + self.trained_layers != list(range(1, depth + 1)):
            raise ValueError(f"frozen_layers and trained_layers are not 1..{depth} in order")
        if len(self.frozen_layers) != self.boundary:
            raise ValueError("boundary is not the number of frozen layers")
        if set(self.boundaries) != set(get_args(SelectorName)) or max(self.boundaries.values()) > depth:
            raise ValueError(f"boundaries does not give every selector one of 0..{depth}")
        if [point.boundary for point in self.frontier] != list(range(depth + 1)):
            raise ValueError(f"frontier does not run over boundaries 0..{depth}")
        return self


def trained_names(names: Iterable[str], family: Family, boundary: int, *, tied_head: bool) -> list[str]:
    """Those parameter names that train above a boundary, in the order given.

    Raises:
        UserError: a name belongs to none of the family's parts.
    """
    return [name for name in names if _trains(name, family, boundary, tied_head)]


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Write the JSON Schema of the artifact."""
    write_json(path, FreezePlan.model_json_schema())


def _trains(name: str, family: Family, boundary: int, tied_head: bool) -> bool:
    if name.startswith(f"{family.layers}."):
        return _layer_index(name, family) >= boundary  # 0-based: layer boundary+1 is the first that trains
    fates = {family.embedding: boundary == 0, family.norm: True, family.head: boundary == 0 or not tied_head}
    for prefix, fate in fates.items():
        if name.startswith(f"{prefix}."):
            return fate
    raise UserError(f"parameter {name} belongs neither to the embeddings nor to a layer, the final norm or the head")


def _layer_index(name: str, family: Family) -> int:
    return int(name.removeprefix(f"{family.layers}.").split(".", 1)[0])


def _differences(plan: FreezePlan, family: Family, named: dict[str, Any]) -> list[str]:
    embedding = named.get(f"{family.embedding}.weight")
    if embedding is None:
        return [f"it has no parameter {family.embedding}.weight (apply the plan before PEFT or DDP wraps the model)"]
    expected, wanted = plan.model, (plan.model.vocabulary, plan.model.hidden)
    layers = len({_layer_index(name, family) for name in named if name.startswith(f"{family.layers}.")})
    tied = f"{family.head}.weight" not in named
    total = sum(parameter.numel() for parameter in named.values())
    facts = [
        ("layers", expected.layers, layers),
        ("embedding matrix", wanted, tuple(embedding.shape)),
        ("tied head", expected.tied_head, tied),
        ("parameters", plan.parameters.total, total),
    ]
    return [f"{what}: {found} instead of {planned}" for what, planned, found in facts if found != planned]
