"""``study.yaml``: which data sets, models, boundaries, rules and seeds a study compares."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

DESCRIPTION: Final = Path("flows/study.yaml")

Share = Annotated[float, Field(ge=0, le=1)]
MOST_RATE: Final = 1.0
Rate = Annotated[float, Field(gt=0, le=MOST_RATE)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Settings = dict[str, Any]  # values by the dotted names of parameters, as in params.yaml


Rates = dict[Share, Annotated[list[Rate], Field(min_length=1)]]  # by the share of frozen layers they hold from


class StudyError(Exception):
    """The study cannot be done as described; the text says what is wrong, where, and what to do."""


class Part(BaseModel):
    """A part of the description; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DataSet(Part):
    """One task.

    Attributes:
        path: file or folder below the folder of data sets; ``None``: ``data.source`` needs none.
        group: data sets of one group are left out together when rules are judged; its own name where absent.
        measure: what counts as quality: the test split's accuracy, the mean of the labels' own accuracies (where
            the test split has more of one than of another), or (for free answers) its loss.
        data: values of the group ``data``.
        bare: the template without worked examples, for models that ask for it.
        set: values of other parameters, by dotted name.
    """

    path: str | None = None
    group: str | None = None
    measure: Literal["accuracy", "balanced-accuracy", "loss"] = "accuracy"
    data: Settings = {}
    bare: str = "{text}\nAnswer:"
    set: Settings = {}


class Model(Part):
    """One base model.

    Attributes:
        path: folder below the folder of models; ``None``: ``set`` names the source, or it is the embedded one.
        data_sets: those it is studied on; ``None``: all.
        learning_rates: instead of the description's.
        bare: prompts have no worked examples.
        set: values of parameters, by dotted name; they go before a data set's.
    """

    path: str | None = None
    data_sets: list[str] | None = None
    learning_rates: Rates | None = None
    bare: bool = False
    set: Settings = {}


class Rule(Part):
    """A selector, and the parameters with which its evidence is made and read."""

    selector: str
    set: Settings = {}


class Refine(Part):
    """Boundaries added in the middle of where the validation loss bends most: so many in each round."""

    rounds: Natural
    midpoints: Count


class Description(Part):
    """The whole of ``study.yaml``; every key is commented there."""

    budget_hours: Annotated[float, Field(gt=0)]
    seeds: Annotated[list[int], Field(min_length=1)]
    together: Count
    boundaries: Annotated[list[Share], Field(min_length=2)]
    refine: Refine
    learning_rates: Rates
    widen: Natural
    equal_compute: list[Share]
    methods: list[str]
    common: Settings
    evidence: Settings
    reference: Settings | None
    rules: dict[str, Rule]
    models: Annotated[dict[str, Model], Field(min_length=1)]
    data_sets: Annotated[dict[str, DataSet], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(0 not in self.rates_of(model) for model in self.models):
            raise ValueError("learning_rates has no entry for depth 0")
        if 0 in self.equal_compute:
            raise ValueError("equal_compute holds 0: full fine-tuning is what the others are given as much as")
        if 0 not in self.boundaries:
            raise ValueError("boundaries lacks 0: costs are shares of full fine-tuning's")
        for name, model in self.models.items():
            for data_set in model.data_sets or ():
                if data_set not in self.data_sets:
                    raise ValueError(f"models.{name}.data_sets: no data set {data_set!r} is described")
        return self

    def rates_of(self, model: str) -> Rates:
        """Grids of learning rates of a model."""
        return self.models[model].learning_rates or self.learning_rates


def read_description(path: Path) -> Description:
    """Read and validate a description.

    Raises:
        StudyError: it is missing, no YAML, or breaks a rule; every fault is named at once.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        return Description.model_validate(raw)
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise StudyError("; ".join(_line(path, fault) for fault in error.errors())) from None


def only(description: Description, data_sets: Sequence[str]) -> Description:
    """The description with these data sets alone; none: all.

    Raises:
        StudyError: one of them is not described.
    """
    unknown = [name for name in data_sets if name not in description.data_sets]
    if unknown:
        raise StudyError(f"no data set {unknown[0]!r} is described; there are: {', '.join(description.data_sets)}")
    chosen = {name: part for name, part in description.data_sets.items() if name in data_sets or not data_sets}
    return description.model_copy(update={"data_sets": chosen})


def _line(path: Path, fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    return f"{path}: {f'{key}: ' if key else ''}{fault['msg'].removeprefix('Value error, ')}"
