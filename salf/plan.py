"""The freeze plan: which layers of a model train, why, and what that costs.

A plan is one JSON file, of which every model made by it carries a copy. Three lines apply it in any script:

    plan = FreezePlan.load("data/plan/freeze_plan.json")
    trained = plan.apply(model)  # sets requires_grad; every other parameter is frozen
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

Layers count from 1, as in the paper (Gu et al., arXiv 2406.11753). A boundary k freezes the embeddings
and layers 1..k, and trains layers k+1..L and the final norm. Boundary 0 freezes nothing. A head with its
own weights always trains; a tied head is the embedding matrix and trains only at boundary 0.

`write_schema` generates the JSON Schema next to this file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import ValidationError, model_validator

from salf import plan_records as parts
from salf.errors import UserError
from salf.families import Family, family_of
from salf.files import read_json, write_json
from salf.methods import frozen_by_name
from salf.parameters import CausalModel, NetworkParameters
from salf.records import fault_of
from salf.selectors import SELECTORS, GainName, Quantity, SelectorName

SCHEMA_VERSION: Final = 3
FILE_NAME: Final = "freeze_plan.json"
SCHEMA_FILE: Final = Path(__file__).with_suffix(".schema.json")


class FreezePlan(parts.Record):
    """The layers to train; layers count from 1.

    Attributes:
        boundaries: each selector's boundary and reason.
        absent: the selectors without evidence, each with the parameter that measures it.
        timed: the budget, where it is time or money.
        tuned: method and learning rate, where a race decided them with the boundary.
    """

    schema_version: Literal[3]
    model: parts.PlannedModel
    selector: SelectorName
    quantity: Quantity
    gain: GainName
    boundary: parts.Natural
    frozen_layers: list[parts.Positive]
    trained_layers: list[parts.Positive]
    embeddings_trained: bool
    norm_trained: bool
    head_trained: bool
    head_note: str
    parameters: parts.ParameterCounts
    reason: str
    certainty: parts.Certainty
    fallback: str | None
    runners_up: list[parts.RunnerUp]
    boundaries: dict[SelectorName, parts.SelectedBoundary]
    absent: dict[SelectorName, str]
    frontier: list[parts.FrontierPoint]
    cost_model: parts.CostModel
    evidence: parts.EvidenceHashes
    exports: parts.Exports
    timed: parts.TimedBudget | None = None
    tuned: parts.Tuned | None = None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan from its JSON file, or from a plan's or a fine-tuned model's folder.

        Raises:
            UserError: the file is missing or damaged, or another version of this program wrote it.
        """
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        raw = read_json(file)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(f"{file}: freeze plan of version {version!r}, not {SCHEMA_VERSION}; run: dvc repro plan")
        try:
            return cls.model_validate_json(json.dumps(raw))
        except ValidationError as error:
            raise UserError(f"{file}: damaged freeze plan: {fault_of(error)}; dvc repro plan") from None

    def save(self, path: str | Path) -> None:
        """Write the plan as canonical JSON."""
        write_json(Path(path), self.model_dump(mode="json"))

    def boundary_of(self, scope: str | None = None) -> int:
        """Return the plan's own boundary, that of a named selector, or the k of ``freeze-<k>``.

        Raises:
            UserError: the selector's evidence is missing (the message says how to measure it), or the model has
                fewer than k layers.
        """
        if scope is None:
            return self.boundary
        boundary = frozen_by_name(scope)
        if boundary is None and scope in self.boundaries:
            boundary = self.boundaries[scope].boundary
        if boundary is None:
            earlier = "an earlier version of this program wrote it; make it again: dvc repro plan"
            why = self.absent.get(scope, earlier if scope in SELECTORS else "no selector has this name")
            raise UserError(f"the freeze plan has no boundary of {scope}: {why}")
        if boundary > self.model.layers:
            depth = self.model.layers
            raise UserError(f"{scope}: {self.model.name} has {depth} layers; allowed: freeze-0 to freeze-{depth}")
        return boundary

    def apply(self, model: CausalModel, scope: str | None = None) -> list[Any]:
        """Freeze and unfreeze a model's parameters as planned; returns those that train, for the optimizer.

        With PEFT, apply the plan after PEFT wrapped the model. Adapters below the boundary are then frozen too, and
        the others stay as they are. Adapters frozen once stay frozen when another plan is applied.

        The model is compared with the plan by model type (if it has a configuration), number of layers, shape of
        the embedding matrix, tied head, and number of parameters. Other weights of the same shape, such as a base
        model and its instruct version, are not distinguished.

        Args:
            model: a Hugging Face causal language model, not yet wrapped by DDP or FSDP.
            scope: a selector or ``freeze-<k>``, to use its boundary instead of the plan's own.

        Raises:
            UserError: the model differs from the planned one (the message names the differences), the plan has no
                such scope, or nothing is left to train.
        """
        parameters = self.check(model)
        return parameters.train_above(family_of(self.model.family, parameters.own), self.boundary_of(scope))

    def check(self, model: CausalModel) -> NetworkParameters:
        """Compare a model with the planned one, as `apply` does, and change nothing; returns its parameters.

        Raises:
            UserError: the model differs from the planned one.
        """
        kind = getattr(getattr(model, "config", None), "model_type", self.model.family)
        parameters = NetworkParameters.of(getattr(model, "whole", model))  # of a suffix: the whole model
        # Another type's parts may have other names, so sizes could not be compared.
        differences = (
            [f"model type: {kind} instead of {self.model.family}"]
            if kind != self.model.family
            else _differences(self, family_of(kind, parameters.own), parameters.own)
        )
        if differences:
            raise UserError(f"the freeze plan is for {self.model.name}, this model differs: {'; '.join(differences)}")
        return parameters

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        depth = self.model.layers
        if self.frozen_layers + self.trained_layers != list(range(1, depth + 1)):
            raise ValueError(f"frozen_layers and trained_layers are not 1..{depth} in order")
        if len(self.frozen_layers) != self.boundary:
            raise ValueError("boundary is not the number of frozen layers")
        if self.selector not in self.boundaries:
            raise ValueError(f"boundaries has no entry of {self.selector}, which chose this one")
        for name, chosen in self.boundaries.items():
            if chosen.boundary > depth or len(chosen.scores or range(depth + 1)) != depth + 1:
                raise ValueError(f"boundaries.{name} is not about the boundaries 0..{depth}")
        if [point.boundary for point in self.frontier] != list(range(depth + 1)):
            raise ValueError(f"frontier does not run over boundaries 0..{depth}")
        return self


def apply_freeze_plan(model: CausalModel, plan: FreezePlan | str | Path, scope: str | None = None) -> list[Any]:
    """Apply a plan, given itself or as a file or folder; see `FreezePlan.apply`."""
    return (plan if isinstance(plan, FreezePlan) else FreezePlan.load(plan)).apply(model, scope)


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Write the JSON Schema of the artifact."""
    write_json(path, FreezePlan.model_json_schema())


def _differences(plan: FreezePlan, family: Family, own: Mapping[str, Any]) -> list[str]:
    embedding = own.get(f"{family.embedding}.weight")
    if embedding is None:
        return [f"it has no parameter {family.embedding}.weight (apply the plan before DDP or FSDP wraps the model)"]
    expected, wanted = plan.model, (plan.model.vocabulary, plan.model.hidden)
    layers = len({family.layer_index(name) for name in own} - {None})
    tied = f"{family.head}.weight" not in own
    # bitsandbytes packs two of four bits into a byte, and holds the shape of what it packed.
    total = sum((getattr(one, "quant_state", None) or one).shape.numel() for one in own.values())
    facts = [
        ("layers", expected.layers, layers),
        ("embedding matrix", wanted, tuple(embedding.shape)),
        ("tied head", expected.tied_head, tied),
        ("parameters", plan.parameters.total, total),
    ]
    return [f"{what}: {found} instead of {planned}" for what, planned, found in facts if found != planned]
