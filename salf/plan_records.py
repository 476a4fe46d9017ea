"""The parts of a freeze plan: plain, frozen records. ``freeze_plan`` puts them together."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
    """The certainty of a choice; the numbers are null where the selector does not measure.

    ``win_share`` is the share of bootstrap resamples of the traced examples in which this boundary has
    the largest gain; ``value``, ``low`` and ``high`` are that gain and its interval.
    """

    win_share: Probability | None
    value: float | None
    low: float | None
    high: float | None
    words: str


class RunnerUp(Record):
    """Another boundary that the same selector might have chosen."""

    boundary: Natural
    value: float
    win_share: Probability


class SelectedBoundary(Record):
    """One selector's choice and its reason.

    ``before_budget`` is the boundary that it would choose without ``plan.budget``; null where that is ``boundary``.
    ``scores`` is the selector's prediction for the boundaries 0..L, higher for better expected quality, in units of
    its own; null at a boundary that it says nothing of, and altogether where it predicts nothing.
    ``interval`` is the bootstrap interval of the boundary over the traced examples; null where none was measured.
    ``warning`` says why the law that chose it does not fit.
    """

    boundary: Natural
    before_budget: Natural | None = None
    reason: str
    scores: list[float | None] | None
    interval: list[Natural] | None = None
    warning: str | None = None


class Spent(Record):
    """A whole fine-tune's FLOPs and their backward part, and their shares of full fine-tuning's."""

    flops: Natural
    flops_share: float
    flops_backward: Natural
    flops_backward_share: float


class Held(Record):
    """What training above a boundary holds.

    ``activation_bytes`` are kept for back-propagation in one part of a batch, an approximation. ``cache_bytes``:
    boundary states of the whole training split; where answers alone train, the prompts' keys and values too.
    ``seconds`` are of the whole fine-tune, at the plan's rates; null where plan.budget is a share of the FLOPs.
    """

    seconds: float | None = None
    trained_parameters: Natural
    optimizer_bytes: Natural
    gradient_bytes: Natural
    activation_bytes: Natural
    cache_bytes: Natural

    @property
    def training_bytes(self) -> int:
        """Memory of training, without the weights themselves and without the cache."""
        return self.optimizer_bytes + self.gradient_bytes + self.activation_bytes


class AnswerPoint(Spent, Held):
    """The cost of training answers alone above a boundary."""


class AnswerSums(Record):
    """The sums of one epoch where answers alone train, and those of their prompts after the shared prefix, once.

    Attributes:
        start, extra: ``finetune.answer_side``.
        base_rows: tokens of all prompts that the base model reads, the shared prefix counted in each.
    """

    start: str
    extra: Natural
    base_rows: Natural
    queries: Positive
    attended: Positive
    prompt_queries: Natural
    prompt_attended: Natural


class FrontierPoint(Held):
    """The cost of training above one boundary, and the part of the trace's reduction that it can still change.

    Attributes:
        flops_frozen: forward pass of the frozen layers over the data, once.
        flops_epoch: one epoch of training above the boundary.
        flops: the whole fine-tune with the frozen layers' output cached:
            flops_frozen + epochs · flops_epoch, for the cost model's epochs.
        flops_backward: what back-propagation takes of flops, recomputed layers included; its share is that of
            boundary 0's. Null in plans made before it was counted.
        lora: the same with adapters instead of weights, as shares of full fine-tuning's weights; null where every
            layer is frozen.
        answer: the same where weights act on answers alone (``+answer``), as shares of full fine-tuning's; null where
            every layer is frozen, layers run padded, or the prepared data do not say where their prompts end.
        flops_uncached: epochs · (flops_frozen + flops_epoch).
        flops_share, flops_share_uncached: of the same at boundary 0; the uncached share is also that
            of a single epoch.
        flops_share_many_epochs: what flops_share falls to as epochs are added.
        observed: mean of the plan's quantity at space ``boundary`` in the trace.
        predicted: the best law's value there, and the observed one where no law fits or reaches.
        remaining_reduction: share of the whole reduction of the quantity (spaces 1 to L) that happens
            above the boundary; null where there is none to share out.
        efficient: no other boundary costs as little and leaves as much of the reduction to train.
    """

    boundary: Natural
    trained_layers: Natural
    flops: Natural
    flops_uncached: Natural
    flops_frozen: Natural
    flops_epoch: Natural
    flops_share: float
    flops_share_uncached: float
    flops_share_many_epochs: float
    flops_backward: Natural | None = None
    flops_backward_share: float | None = None
    lora: Spent | None = None
    answer: AnswerPoint | None = None
    observed: float
    predicted: float
    remaining_reduction: float | None
    efficient: bool


class CostModel(Record):
    """The sums from which the frontier's costs follow (see ``salf/cost.py``), and the assumptions.

    Attributes:
        parts: that a batch is computed in.
        shared: tokens that all prompts begin with.
        queries, attended, positions, seen: of one epoch's training.
        frozen_queries, frozen_attended: of the frozen layers' pass over the data, before the first step.
        recompute: trained layers run a second time for back-propagation (``finetune.gradient_checkpointing``).
        lora_rank: of the adapters that ``lora`` counts.
        answer: what ``answer`` counts.
    """

    epochs: Positive
    batch_rows: Positive
    value_bytes: Positive
    rows: Positive
    parts: Positive
    shared: Natural
    queries: Positive
    attended: Positive
    positions: Positive
    seen: Positive
    frozen_queries: Positive
    frozen_attended: Positive
    recompute: bool = False
    lora_rank: Positive = 8
    answer: AnswerSums | None = None
    formula: str
    assumptions: list[str]

    @property
    def parts_per_epoch(self) -> int:
        """Parts of all batches together: what is held at a time is an epoch's sum divided by their number."""
        return math.ceil(self.rows / self.batch_rows) * self.parts


class Rates(Record):
    """The rates of a machine in training, measured on a few layers of the model's shape.

    Attributes:
        frozen_flops_per_second: of passes without gradients.
        flops_per_second: of training on whole examples.
        answer_flops_per_second: of training on as few rows as answers alone have (``+answer``); null where they cannot.
        bytes_per_second: of optimizer updates.
        machine: as in ``reports/runs/*.json``.
        about: digest of what was timed. Where it and the machine are the same, rates are not measured again.
    """

    frozen_flops_per_second: float
    flops_per_second: float
    answer_flops_per_second: float | None
    bytes_per_second: float
    machine: dict[str, Any]
    about: str


class TimedBudget(Record):
    """A ``plan.budget`` in time or money.

    Attributes:
        budget: as given, ``20 min`` or ``2.50 USD``.
        seconds: what it pays for: one training at one learning rate, cached passes included; neither validation nor
            loading and saving.
        shallowest, shallowest_answer: the shallowest boundary within it where all positions train, and where answers
            alone do; null where none is.
    """

    budget: str
    seconds: float
    price_per_hour: float | None
    shallowest: Natural | None
    shallowest_answer: Natural | None
    rates: Rates


class EvidenceHashes(Record):
    """SHA-256 of what the choice rests on; null where no signals or no pilots were given."""

    law_sha256: str
    gains_sha256: str
    trace_sha256: str
    signals_sha256: str | None
    pilot_sha256: str | None


class Tuned(Record):
    """How a plan's layers are to be trained, where real fine-tunes decided that: the winner of a race."""

    method: str
    positions: str
    form: str
    learning_rate: float


class Exports(Record):
    """The plan in the words of other tools; ``notes`` say what a tool cannot express."""

    peft: dict[str, Any]
    axolotl: list[str]
    llama_factory: dict[str, Any]
    parameter_names: dict[Literal["trained"], list[str]]
    notes: list[str]
