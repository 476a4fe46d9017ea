"""``study.yaml``: which datasets, models, methods and seeds a study compares."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from salf.errors import UserError
from stages.common.params_file import read_validated

DESCRIPTION: Final = Path("stages/study/study.yaml")
FULL: Final = "full"
HALF: Final = "half"
MOST_RATE: Final = 1.0

Budget = Literal["epochs", "compute"]
Measure = Literal["accuracy", "balanced-accuracy", "loss"]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=MOST_RATE)]
Grid = Annotated[list[Rate], Field(min_length=1)]
Rates = dict[Share, Grid]  # by the share of frozen layers from which a grid holds
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Settings = dict[str, Any]  # values by the dotted names of parameters, as in params.yaml


class Case(NamedTuple):
    """A dataset with a model."""

    data_set: str
    model: str


class Part(BaseModel):
    """A part of the description; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DataSet(Part):
    """One task; ``boundaries`` replace the study's."""

    path: str | None = None
    group: str | None = None
    measure: Measure = "accuracy"
    boundaries: list[Share] | None = None
    data: Settings = {}
    set: Settings = {}


class Model(Part):
    """One base model with its number of layers; its ``set`` overrides a dataset's."""

    layers: Count
    path: str | None = None
    data_sets: list[str] | None = None
    learning_rates: Rates | None = None
    set: Settings = {}


class Arm(Part):
    """A method in addition to the boundaries, and where it is measured.

    ``method`` and ``set`` (settings by dotted name) are what it trains, if that is not its own name with the settings
    of all. Its rate is tuned on ``rates``, or is the one that was tuned for the method ``rate_of``. ``None``: all
    models, datasets and seeds, full fine-tuning's grid, the study's ``widen``. ``texts``: what was forgotten, too.
    It is tuned at the first of its ``budgets``; ``compute``: as many epochs as full fine-tuning's FLOPs pay for.
    """

    method: str | None = None
    set: Settings = {}
    models: list[str] | None = None
    data_sets: list[str] | None = None
    seeds: list[int] | None = None
    rates: Grid | None = None
    rate_of: str | None = None
    widen: Natural | None = None
    budgets: Annotated[list[Budget], Field(min_length=1)] = ["epochs"]
    texts: bool = False

    def includes(self, case: Case, seed: int) -> bool:
        """Whether the method is measured on this case with this seed."""
        asked = ((self.models, case.model), (self.data_sets, case.data_set), (self.seeds, seed))
        return all(chosen is None or one in chosen for chosen, one in asked)


class Texts(Part):
    """Texts of another kind whose perplexity is measured: files by name in the folder of datasets.

    The first ``blocks`` of ``tokens`` are read of each.
    """

    files: dict[str, str]
    blocks: Count
    tokens: Count


class Description(Part):
    """The whole of ``study.yaml``; every key is commented there."""

    budget_hours: Annotated[float, Field(gt=0)]
    seeds: Annotated[list[int], Field(min_length=1)]
    boundaries: Annotated[list[Share], Field(min_length=2)]
    learning_rates: Rates
    widen: Natural
    methods: dict[str, Arm]
    texts: Texts | None = None
    common: Settings
    models: Annotated[dict[str, Model], Field(min_length=1)]
    data_sets: Annotated[dict[str, DataSet], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(0 not in self.rates_of(model) for model in self.models):
            raise ValueError("learning_rates has no entry for depth 0")
        if any(0 not in (one.boundaries or self.boundaries) for one in self.data_sets.values()):
            raise ValueError("boundaries lacks 0: costs are shares of full fine-tuning's")
        for table in ("models", "methods"):
            for name, part in getattr(self, table).items():
                for data_set in part.data_sets or ():
                    if data_set not in self.data_sets:
                        raise ValueError(f"{table}.{name}.data_sets: no dataset {data_set!r} is described")
        tuned = {FULL, HALF, *(name for name, arm in self.methods.items() if arm.rate_of is None)}
        for name, arm in self.methods.items():
            if arm.rate_of not in {None, *tuned}:
                raise ValueError(f"methods.{name}.rate_of: no rate of {arm.rate_of!r} is tuned here")
        return self

    def rates_of(self, model: str) -> Rates:
        """Grids of learning rates of a model."""
        return self.models[model].learning_rates or self.learning_rates

    def boundaries_of(self, data_set: str) -> list[Share]:
        """The shares of the layers that are frozen on a dataset."""
        return self.data_sets[data_set].boundaries or self.boundaries

    def arm(self, method: str) -> Arm:
        """The entry of a method; one that freezes up to a layer has none of its own."""
        return self.methods.get(method, Arm())

    def trained(self, method: str) -> str:
        """The method that an entry trains."""
        return self.arm(method).method or method

    def cases(self) -> list[Case]:
        """All cases, model by model: the first model is studied on every dataset first."""
        return [
            Case(data_set, name)
            for name, model in self.models.items()
            for data_set in self.data_sets
            if model.data_sets is None or data_set in model.data_sets
        ]


def read_description(path: Path, data_sets: Sequence[str] = ()) -> Description:
    """Read and validate a description, reduced to some datasets where these are named.

    Raises:
        UserError: the file is missing, is no YAML or breaks a rule, or a dataset is not described.
    """
    found = read_validated(path, Description)
    unknown = [name for name in data_sets if name not in found.data_sets]
    if unknown:
        raise UserError(f"{path}: no dataset {unknown[0]!r} is described; known: {', '.join(found.data_sets)}")
    chosen = {name: part for name, part in found.data_sets.items() if name in data_sets or not data_sets}
    return found.model_copy(update={"data_sets": chosen})
