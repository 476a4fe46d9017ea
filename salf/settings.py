"""Settings that the library shares with ``params.yaml``: names, ranges, and the groups that training reads."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from salf.errors import UserError
from salf.methods import RACE, SCOPES, checked, method_of, rate_entry
from salf.selectors import SELECTORS

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Bits = Annotated[int, Field(ge=2, le=16)]
SEEDS: Final = 2**32  # 0 to this, without it: what every generator of random numbers takes
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Confidence = Annotated[float, Field(gt=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
_ONE_OR_MORE: Final = (Field(min_length=1), BeforeValidator(lambda v: v if isinstance(v, list) else [v]))
RateGrid = Annotated[list[LearningRate], *_ONE_OR_MORE]
Keep = Literal["last", "best", "mean", "ema"]
AVERAGES: Final = ("mean", "ema")

MethodName = Annotated[str, AfterValidator(lambda name: checked(name, SELECTORS))]
KeysValues = Literal["exact", "int8", "auto"]  # of cached prompts
FrozenWeights = Literal["whole", "int8", "nf4", "offload"]
CacheMode = Literal["auto", "memory", "disk", "off"]
ChoiceScore = Literal["sum", "token", "character"]
Quality = Literal["accuracy", "exact_match", "perplexity"]


@dataclass(frozen=True)
class Task:
    """The task of the model; answers are free text where none of the three is set."""

    labels: bool = False  # answers are a few label words, the same for all rows
    candidates: bool = False  # every row has its own candidates
    text: bool = False  # there are no answers; every token of plain text is predicted

    @property
    def free(self) -> bool:
        """Whether answers are any text, up to a token that ends them."""
        return self == Task()

    @property
    def quality(self) -> Quality:
        """The score that models are compared by."""
        return "perplexity" if self.text else "exact_match" if self.free else "accuracy"


TASKS: Final = {
    "classification": Task(labels=True),
    "multiple-choice": Task(candidates=True),
    "free": Task(),
    "text": Task(text=True),
}
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


class Group(BaseModel):
    """A group of parameters: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Device(Group):
    """The device and precision of torch stages."""

    kind: Literal["auto", "cuda", "mps", "cpu"]
    dtype: Literal["auto", "float32", "bfloat16"]
    frozen_weights: FrozenWeights = "whole"


class Batches(Group):
    """The number of examples of a fine-tune, and how they are computed."""

    epochs: Count
    batch_size: Count
    accumulate: Count
    gradient_checkpointing: bool

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(examples / self.batch_size)


class Caching(Group):
    """The place of cached boundary states."""

    cache: CacheMode
    cache_folder: Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
    cache_gib: Annotated[float, Field(gt=0)]


class Dfa(Group):
    """Gradients of layers, for methods with ``+dfa``."""

    feedback: Literal["random", "identity"] = "random"
    last: Literal["feedback", "exact"] = "feedback"
    spread: Literal["none", "example"] = "none"


class Schedule(Caching, Batches):
    """The settings that all fine-tunes share, pilots included."""

    learning_rate: dict[MethodName, RateGrid]
    schedule: Literal["cosine", "constant", "warmup-stable-decay"]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    lora_rank: Count
    lora_alpha: Annotated[float, Field(gt=0)]
    dfa: Dfa = Dfa()

    def rates(self, method: str, boundary: int) -> list[float]:
        """The learning rates to try for a method whose boundary is known, ascending."""
        entry = rate_entry(method, boundary, self.learning_rate)
        if entry is None:
            raise UserError(f"params.yaml: finetune.learning_rate has no entry for {method} (boundary {boundary})")
        return sorted(self.learning_rate[entry])


Outputs = Literal["answers", "vocabulary"]  # whose logits are compared: of answers' tokens where these are few, or all


class Pace(Group):
    """Settings of ``+pace``, ``+pace-lazy`` and ``+pace-fast``: :mod:`salf.engine.techniques.pace`."""

    sigma: Annotated[float, Field(ge=0)] = 1.0
    strength: Annotated[float, Field(ge=0)] = 0.1
    every: Count = 2
    over: Outputs = "answers"


class Distill(Group):
    """Settings of ``+distill``: :mod:`salf.engine.techniques.distill`."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    over: Outputs = "answers"


class AnswerSide(Group):
    """Start of an example's trained side, for methods with ``+answer``: :mod:`salf.split_point`."""

    model_config = ConfigDict(populate_by_name=True)

    start: Literal["field", "turn"] = Field("field", alias="from")
    extra: Annotated[int, Field(ge=0)] = 0
    keys_values: KeysValues = "exact"


class Extrapolation(Group):
    """Point ahead of the weights, for methods with ``+extrap`` or ``+extragradient``."""

    factor: Annotated[float, Field(ge=0)] = 1.0
    until: Share = 0.5
    direction: Literal["past", "fresh", "noise"] = "past"


class Sift(Group):
    """The entries of matrices that train, for methods with ``+sift``."""

    share: Share = 0.01
    select: Literal["gradient", "random", "magnitude"] = "gradient"


class Roste(Group):
    """Grids and rotation, for methods with ``+roste``; ``None`` bits: full precision."""

    weight_bits: Bits | None = 4
    activation_bits: Bits | None = 4
    kv_bits: Bits | None = 4
    clip: Share = 1.0
    calibration: Count = 128
    rotation: Literal["adaptive", "all", "none"] = "adaptive"


class Dcp(Group):
    """Interactions by which layers drop tokens, for methods with ``+dcp``."""

    width: Count = 64
    bias: float = 2.0
    strength: Annotated[float, Field(ge=0)] = 0.3
    alpha: Annotated[float, Field(ge=1)] = 8.0


class Head(Group):
    """First values of the class head, for methods with ``+head``: random, or the label words' embeddings."""

    init: Literal["random", "words"] = "random"


class Lozo(Group):
    """Zeroth-order steps, for methods with ``+lozo``, ``+lozo-m`` or ``+mezo``."""

    radius: Annotated[float, Field(gt=0)] = 1e-3
    rank: Count = 2
    interval: Count = 50
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    steps: Count | None = None


class Finetune(Schedule):
    """The group ``finetune``: one schedule for all methods, except for the learning rate."""

    processes: Count
    lisa_layers: Count
    lisa_steps: Count
    equal_compute: bool
    evaluations_per_epoch: Annotated[int, Field(ge=0)]
    checkpoint_minutes: Annotated[float, Field(ge=0)]
    answer_side: AnswerSide = AnswerSide()
    extrapolation: Extrapolation = Extrapolation()
    head: Head = Head()
    pace: Pace = Pace()
    distill: Distill = Distill()
    sift: Sift = Sift()
    roste: Roste = Roste()
    dcp: Dcp = Dcp()
    lozo: Lozo = Lozo()
    keep: Annotated[list[Keep], *_ONE_OR_MORE] = ["last"]
    patience: Count | None = None

    @property
    def decided_by_looks(self) -> bool:
        """Whether validation during training decides how long it goes on, or which weights are kept."""
        return self.patience is not None or "best" in self.keep

    def unfit(self, method: str, facts: Mapping[str, str]) -> str | None:
        """Why these settings do not fit a method; ``None``: they do.

        ``facts``: the task and traits of the model as far as they are known, and how messages call them.
        """
        own = {name: f"finetune.{name}" for name, value in self if value is True}
        own |= {name: f"finetune.keep = {name}" for name in self.keep}
        why = method_of(method).refusal({**own, **facts})
        if not why and method_of(method).counts_steps and not (self.equal_compute or self.lozo.steps):
            why = "it counts steps, not epochs: set finetune.lozo.steps, or finetune.equal_compute to true"
        return f"{method}: {why}" if why else None

    @field_validator("keep")
    @classmethod
    def _distinct(cls, keep: list[Keep]) -> list[Keep]:
        if len(set(keep)) != len(keep):
            raise ValueError("the same entry appears twice")
        return keep

    @field_validator("patience")
    @classmethod
    def _can_end_training(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and set(AVERAGES) & set(info.data.get("keep", ())):
            raise ValueError("the mean and ema of the last third need all steps; set patience to null")
        if patience is not None and info.data.get("evaluations_per_epoch") == 0:
            raise ValueError("nothing is compared before the last step; set evaluations_per_epoch to 1 or more")
        return patience


class RaceArms(Group):
    """A method in a race, with each of its learning rates an arm."""

    method: MethodName
    learning_rate: RateGrid

    @model_validator(mode="after")
    def _has_a_plan(self) -> Self:
        if self.method in (*SCOPES, RACE):
            raise ValueError(f"{self.method} freezes up to no layer, so no plan could hold it; leave it out")
        if method_of(self.method).counts_steps:
            raise ValueError(f"{self.method} counts steps, and the arms of a race train for epochs; leave it out")
        if method_of(self.method).form.classes:
            raise ValueError(f"{self.method}: its loss is over classes, that of other arms over words; leave it out")
        return self


class Race(Group):
    """The group ``race``: which methods and rates take part, and how many of them survive the first epoch at most."""

    arms: Annotated[list[RaceArms], Field(min_length=1)] = [
        RaceArms(method="full+answer+lora", learning_rate=[0.0005, 0.001, 0.002]),
        RaceArms(method="half", learning_rate=[0.0002]),
    ]
    keep: Count = 1

    @property
    def pairs(self) -> list[tuple[str, float]]:
        """Method and learning rate of every arm."""
        return [(arms.method, rate) for arms in self.arms for rate in arms.learning_rate]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        known = [(method_of(name), rate) for name, rate in self.pairs]
        if twice := next((pair for at, pair in enumerate(self.pairs) if known[at] in known[:at]), None):
            raise ValueError(f"{twice[0]} at learning rate {twice[1]:g} appears twice")
        return self
