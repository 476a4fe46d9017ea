"""The groups of ``params.yaml``, validated as a whole, handed out by the room.

Loading checks the *whole* file: a mistake in ``finetune`` is reported before ten minutes of tracing, not after. It
returns only the groups that the stage's :class:`Room` declares, so that no stage sees what ``dvc.yaml`` does not list.
"""

import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator, BeforeValidator, field_validator, model_validator

from salf.errors import UserError
from salf.evidence import LEVELS
from salf.methods import RACE, checked, method_of, rate_entry
from salf.metrics import BASELINES
from salf.selectors import SELECTORS, SIGNALS, GainName, Quantity, SelectorName, SignalKind
from salf.settings import (
    TASKS,
    ChoiceScore,
    Confidence,
    Count,
    Device,
    Finetune,
    Group,
    MethodName,
    Race,
    Seed,
    Share,
    TaskName,
)
from stages.common.params_file import read_validated

PARAMS_FILE = Path("params.yaml")


class Model(Group):
    """The source of the base model."""

    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    trust_remote_code: bool


def _watched_path(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded != path and "DVC_STAGE" in os.environ:  # its dependency is the path as it is written
        raise ValueError(f"DVC does not expand ~; write {expanded}")
    return expanded


def _split_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError("a split's name is a plain name, not a path")
    return name


def _distinct(values: list[Any], fault: str = "the same entry appears twice") -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(fault)
    return values


_PLAIN_NAME: Final = "^[a-z0-9][a-z0-9_-]*$"
SplitName = Annotated[str, AfterValidator(_split_name)]


class Splits(Group):
    """Names of the source's own splits; ``None``: carved out of the training split.

    ``shifted``: further test splits, own name to the source's.
    """

    train: SplitName
    validation: SplitName | None
    test: SplitName | None
    shifted: dict[Annotated[str, Field(pattern=_PLAIN_NAME)], SplitName] = Field(default_factory=dict)

    @property
    def named(self) -> dict[str, str]:
        """The source's names of the splits that it has."""
        return {split: name for split, name in self if isinstance(name, str)} | self.shifted

    @model_validator(mode="after")
    def _named_apart(self) -> Self:
        _distinct(["train", "validation", "test", *self.shifted], "a shifted split has the name of another split")
        _distinct([*self.named.values()], "two splits have one name; null is carved out of the training split")
        return self


class Limits(Group):
    """Most rows kept of each split; ``None``: all."""

    train: Count | None
    validation: Count | None
    test: Count | None

    def of(self, split: str) -> int | None:
        """The limit of a split; a shifted one has that of test."""
        return self.model_dump().get(split, self.test)


class Choices(Group):
    """Multiple choice: where a row's candidates are, and how they are answered with and scored."""

    column: str | list[str] | None
    answer: Literal["text", "letter"]
    score: ChoiceScore
    first: Literal[0, 1]


def _separator(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None
    if groups or not pattern:
        raise ValueError("write (?:...) for a group, and null for no separator")
    return pattern


class Text(Group):
    """Plain text: length of a block in tokens, and what separates the documents of a row."""

    block_tokens: Annotated[int, Field(ge=2)]
    separator: Annotated[str, AfterValidator(_separator)] | None


OLD_BALANCE: Final = {True: "all", False: "none"}  # as release 0.1.0 spelled them
Balance = Annotated[
    Literal["train", "all", "none"], BeforeValidator(lambda v: OLD_BALANCE[v] if isinstance(v, bool) else v)
]


class Named(Group):
    """Rows by their ids: a Parquet table with the columns name, split and example_id, and which name counts."""

    table: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]


class Data(Group):
    """The task: where the rows come from and what is asked of the model."""

    source: Literal["docstrings", "files", "hub"]
    path: Annotated[str, AfterValidator(_watched_path)]
    name: str | None
    config: str | None
    revision: str | None
    stream: Count | None
    splits: Splits
    task: TaskName
    template: Annotated[str, Field(min_length=1)]
    answer_column: Annotated[str, Field(min_length=1)]
    label_words: dict[str | int | float | bool | date | None, str]  # a label may look like a number in YAML
    choices: Choices
    text: Text = Text(block_tokens=256, separator=None)
    messages: str | None
    group_column: str | None
    subgroup_column: str | None = None
    balance: Balance
    limits: Limits
    seed: Seed
    examples: Named | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source == "hub" and not self.name:
            raise ValueError("source is hub, but name is null: set data.name")
        if self.source == "docstrings" and self.splits.shifted:
            raise ValueError("source is docstrings, which has no further splits: set data.splits.shifted to {}")
        if TASKS[self.task].candidates:
            if not self.choices.column:
                raise ValueError("task is multiple-choice: set data.choices.column")
            if self.messages or self.label_words:
                raise ValueError("task is multiple-choice: data.messages stays null, data.label_words {}")
            if self.choices.answer == "letter" and "{choices}" not in self.template:
                raise ValueError("data.choices.answer is letter: the template must show the candidates, as {choices}")
        return self


class Prepare(Group):
    """Limits of the prepared examples."""

    max_tokens: Annotated[int, Field(ge=8)]
    near_duplicate: Share | None
    chat_template: bool


class Trace(Group):
    """The traced quantities, and the number of examples."""

    sample: Count | None
    losses: Annotated[int, Field(ge=0)] | None
    basis: Literal["head", "head-and-norm"] = "head"
    space: Literal["normed", "raw"]
    target: Literal["output", "virtual"]
    positions: Count | None = None
    batch_tokens: Annotated[int, Field(ge=16)]
    workers: Literal[1] = 1  # of files of release 0.1.0
    seed: Seed


class Fit(Group):
    """Settings for fitting and comparing the scaling laws."""

    bootstrap: Annotated[int, Field(ge=20)]
    holdout_layers: Count
    confidence: Confidence
    seed: Seed


class Signals(Group):
    """The evidence for other selectors, and the number of examples."""

    kinds: list[SignalKind]
    sample: Count
    folds: Annotated[int, Field(ge=2)]
    batch_tokens: Annotated[int, Field(ge=16)]
    seed: Seed


PilotMethod = Literal["weights", "lora", "dfa"]


class Pilot(Group):
    """Small fine-tunes whose losses predict those of every boundary."""

    enabled: bool
    boundaries: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    sizes: Annotated[list[Share], Field(min_length=1)]
    methods: Annotated[list[PilotMethod], AfterValidator(_distinct)] = Field(["weights"], min_length=1)
    ranks: Annotated[list[Count], AfterValidator(_distinct)] = Field([])
    draws: Count = 1
    epochs: Count | None
    bootstrap: Annotated[int, Field(ge=20)]
    confidence: Confidence
    seed: Seed

    @field_validator("ranks")
    @classmethod
    def _enough(cls, ranks: list[int], info: ValidationInfo) -> list[int]:
        if ranks and (len(ranks) < LEVELS or "lora" not in info.data.get("methods", ())):
            raise ValueError(f"a law of ranks needs lora in pilot.methods, and at least {LEVELS} ranks ([] for none)")
        return ranks


_BUDGET: Final = re.compile(r"(\d+(?:\.\d+)?) ?(min|h|[A-Z]{3})")


def _budget(given: Any) -> float | str:
    if isinstance(given, str) and (found := _BUDGET.fullmatch(given)) and float(found[1]) > 0:
        return given
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= 1:
        return float(given)
    raise ValueError(
        "allowed: a share of full fine-tuning's FLOPs (above 0, up to 1), or a time or price with its unit: "
        "20 min, 1.5 h, 2.50 USD (min, h, or three capital letters of a currency)"
    )


class Plan(Group):
    """Settings for choosing the boundary."""

    selector: SelectorName
    quantity: Quantity
    gain: GainName
    budget: Annotated[float | str, BeforeValidator(_budget)]
    price_per_hour: Annotated[float | None, Field(gt=0, validate_default=True)] = None
    tolerance: Annotated[float, Field(ge=0)]
    last_n: Count
    first_n: Count | None
    oracle: Annotated[int, Field(ge=0)] | None
    seed: Seed

    @property
    def limit(self) -> tuple[float, str]:
        """The budget and its unit: min, h, a currency, or none for a share of full fine-tuning's FLOPs."""
        found = _BUDGET.fullmatch(self.budget) if isinstance(self.budget, str) else None
        return (float(found[1]), found[2]) if found else (float(self.budget), "")

    @field_validator("price_per_hour")
    @classmethod
    def _known_for_a_price(cls, price: float | None, info: ValidationInfo) -> float | None:
        budget = info.data.get("budget")
        if price is None and isinstance(budget, str) and budget[-3:].isupper():
            raise ValueError(
                f"plan.budget = {budget} is a price: set that of an hour on this machine, in {budget[-3:]}"
            )
        return price


def _variant_name(name: str) -> str:
    if not re.fullmatch(_PLAIN_NAME, name):
        raise ValueError("a variant's name has small letters, digits, - and _ only")
    if name in BASELINES:
        raise ValueError("a baseline has this name; give the variant another one")
    try:
        checked(name, SELECTORS)
    except ValueError:
        return name
    raise ValueError("a method has this name; give the variant another one")


class Variant(BaseModel):
    """A method, and settings of ``finetune`` that are its own."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    method: MethodName

    def settings(self, common: Finetune) -> Finetune:
        """The common settings with its own in place; of a group, those that it names."""
        values = common.model_dump(by_alias=True)
        for name, own in (self.model_extra or {}).items():
            grouped = isinstance(getattr(common, name, None), Group) and isinstance(own, dict)
            values[name] = {**values[name], **own} if grouped else own
        return Finetune.model_validate(values)


class Compare(Group):
    """The matrix of fine-tunes."""

    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(_distinct)]
    variants: dict[Annotated[str, AfterValidator(_variant_name)], Variant] = Field(default_factory=dict)
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]

    @property
    def labels(self) -> list[str]:
        """The names in the comparison: methods, then variants."""
        return [*self.methods, *self.variants]

    def variant(self, name: str) -> Variant:
        """A variant by its name."""
        if name not in self.variants:
            raise UserError(f"params.yaml: compare.variants has no entry {name}; there: {', '.join(self.variants)}")
        return self.variants[name]


class Shift(Group):
    """Measuring how far predictions moved from the base's: examples of each text, and a file of neutral text."""

    examples: Count
    neutral: Annotated[str, AfterValidator(os.path.expanduser)] | None = None


class Evaluate(Group):
    """Settings for scoring models."""

    bootstrap: Annotated[int, Field(ge=20)]
    confidence: Confidence
    batch_tokens: Annotated[int, Field(ge=16)]
    generate_tokens: Count
    answer_marker: str | None
    examples_shown: Annotated[int, Field(ge=0)]
    pairs: Annotated[str, AfterValidator(os.path.expanduser)] | None = None
    shift: Shift | None = None
    seed: Seed


class Params(Group):
    """The whole of ``params.yaml``."""

    model: Model
    data: Data
    device: Device
    prepare: Prepare
    trace: Trace
    fit: Fit
    signals: Signals
    pilot: Pilot
    plan: Plan
    compare: Compare
    finetune: Finetune
    race: Race = Race()
    evaluate: Evaluate

    @model_validator(mode="after")
    def _settings_fit_every_method(self) -> Self:
        asked = [("", method, self.finetune) for method in self.compare.methods]
        for name, variant in self.compare.variants.items():
            try:
                asked.append((f"compare.variants.{name}: ", variant.method, variant.settings(self.finetune)))
            except ValidationError as error:
                fault = error.errors()[0]
                unknown = fault["type"] == "extra_forbidden"
                message = "no setting of finetune" if unknown else fault["msg"].removeprefix("Value error, ")
                where = ".".join(map(str, fault["loc"]))
                raise ValueError(f"compare.variants.{name}.{where} = {fault['input']!r}: {message}") from None
        facts = {self.data.task: f"data.task = {self.data.task}"}
        facts |= {"chat_template": "prepare.chat_template"} if self.prepare.chat_template else {}
        for where, method, settings in asked:
            # A selector's boundary is known with its plan, and most freeze something.
            boundary = method_of(method).boundary
            known = method == RACE or rate_entry(method, 1 if boundary is None else boundary, settings.learning_rate)
            if known is None:
                raise ValueError(f"{where or 'finetune.'}learning_rate has no entry for {method}")
            if method == RACE and (settings.equal_compute or settings.decided_by_looks):
                raise ValueError(
                    f"{where or 'finetune: '}the arms of a race train equally long, and its own looks decide: set "
                    "equal_compute to false, patience to null, and keep to last (for race alone: as a variant)"
                )
            for one in [name for name, _ in self.race.pairs] if method == RACE else [method]:
                if unfit := settings.unfit(one, facts):
                    raise ValueError(f"{where}{unfit}")
        return self

    @model_validator(mode="after")
    def _groups_fit_the_task(self) -> Self:
        data, chat = self.data, self.prepare.chat_template
        if data.messages and not chat:
            raise ValueError("data.messages holds conversations: set prepare.chat_template to true")
        if not TASKS[data.task].text:
            return self
        unused = {
            "data.template": data.template.partition("{")[0].strip(),  # worked examples, for instance
            "data.label_words": data.label_words,
            "data.choices.column": data.choices.column,
            "data.messages": data.messages,
            "data.subgroup_column": data.subgroup_column,
            "prepare.chat_template": chat,
            "signals.kinds": [kind for kind in self.signals.kinds if not SIGNALS[kind].of_weights],
            "evaluate.answer_marker": self.evaluate.answer_marker,
        }
        for name, value in unused.items():
            if value:
                raise ValueError(
                    f"data.task is text, whose documents have neither prompt nor answer: take {value!r} out of {name}"
                )
        return self


class Room(BaseModel):
    """The part of ``params.yaml`` that a stage reads, as in ``dvc.yaml``: groups, or some of a group's keys."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def load(cls, path: Path = PARAMS_FILE) -> Self:
        """Validate the whole file and return this room's groups; a ``UserError`` names every fault at once."""
        everything = load_params(path)
        groups: dict[str, Group] = {}
        for name, field in cls.model_fields.items():
            kind: Any = field.annotation
            groups[name] = kind(**{key: getattr(getattr(everything, name), key) for key in kind.model_fields})
        return cls(**groups)


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate a parameter file."""
    return read_validated(path, Params)
