"""The stages' artifacts, typed: one class and one reader for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from salf.errors import UserError
from salf.files import read_json, require, write_json
from salf.methods import RACE, Method, method_of
from salf.settings import ChoiceScore, Device, Finetune, Keep, Race
from salf.shape import ModelShape

Kind = TypeVar("Kind", bound=BaseModel)


class Artifact(BaseModel):
    """A JSON file: ``file`` in the folder of the stage that makes it, or a path of its own."""

    made_by: ClassVar[str]
    file: ClassVar[str] = ""
    whole: ClassVar[bool] = False  # fields that were not set are written, too

    @classmethod
    def load(cls, place: Path) -> Self:
        """Read it from its folder or path; a ``UserError`` says that it is missing or damaged, and what makes it."""
        return checked(cls, place / cls.file, cls.made_by)

    def save(self, place: Path) -> None:
        """Write canonical JSON: the fields that were set (or all, if ``whole``), under the names that readers know."""
        write_json(place / self.file, self.model_dump(mode="json", by_alias=True, exclude_unset=not self.whole))


class ParameterSizes(BaseModel):
    """Numbers of parameters by part."""

    embedding: int
    per_layer: list[int]
    norm: int
    head: int


class BaseRecord(Artifact):
    """``base.json``: what the base model is and where it came from."""

    made_by, file = "base", "base.json"

    layout: Literal[1] = Field(alias="schema")
    name: str
    weights_sha256: str
    parameters: ParameterSizes
    parameter_names: list[str]  # of the loaded network
    source: str  # `embedded`, or the model's name
    origin: str
    revision: str | None  # the Hub's commit, or the embedded file's SHA-256; None for a local folder
    family: str  # the model type in its configuration
    layers: int
    hidden: int
    vocabulary: int
    tied_head: bool
    trust_remote_code: bool  # whether Python files of the model's author are part of the folder
    shards: dict[str, str]  # SHA-256 of every weight file


@dataclass(frozen=True)
class BaseFacts:
    """The base model without its weights."""

    identity: BaseRecord
    shape: ModelShape

    def trained_parameters(self, boundary: int) -> int:
        """Parameters that train above a boundary, at 0 all of them; a tied head is counted once."""
        sizes = self.identity.parameters
        below = sizes.embedding if boundary == 0 else 0
        head = 0 if self.shape.tied_head else sizes.head
        return below + sum(sizes.per_layer[boundary:]) + sizes.norm + head


class SplitSize(BaseModel):
    """Size of a prepared split; ``tokens`` is what a forward pass sees, ``sha256`` its file's hash.

    ``field_tokens`` and ``turn_tokens`` are the prompts' tokens up to where their data end (:mod:`salf.split_point`).
    """

    rows: int
    tokens: int
    answer_tokens: int
    field_tokens: int | None = None
    turn_tokens: int | None = None
    sha256: str | None = None


class PreparedSizes(BaseModel):
    """``meta.json``, as far as a plan reads it."""

    splits: Mapping[str, SplitSize]
    shared_prefix_tokens: int


class PreparedSplit(SplitSize):
    """A prepared split: lengths, labels and the hash of its file."""

    prompt_tokens_min: int
    prompt_tokens_max: int
    label_counts: dict[str, int]  # label to kept rows
    source_label_counts: dict[str, int]  # label to rows before the limits
    sha256: str
    candidates: int | None = None  # multiple choice: number of all candidates
    documents: int | None = None  # plain text: the blocks' documents
    short_blocks: int | None = None  # blocks below the set length: short documents, and what others leave at their end


class PreparedLabel(BaseModel):
    """A label, the word that answers it, and the word's token ids."""

    label: str
    word: str
    token_ids: list[int]


class RowCount(BaseModel):
    """A number of rows and the reason why they are counted."""

    reason: str
    count: int


class RefusedRows(RowCount):
    """Rows of a split that cannot be used."""

    split: str


class PreparedRecord(Artifact, PreparedSizes):
    """``meta.json``: what the prepared data are and what became of the rows."""

    made_by, file = "prepare", "meta.json"

    layout: Literal[1] = Field(alias="schema")
    task: str
    source: dict[str, Any]  # `kind` (docstrings, files or hub), and names with hashes or versions
    splits: Mapping[str, PreparedSplit]
    end_token_id: int | None  # token that ends answers; None where they end with their text
    choice_score: ChoiceScore | None  # how candidates are compared
    chat_template: str | None  # digest of the chat template that wrote the prompts
    labels: list[PreparedLabel]  # empty where the task has no classes
    balance: str | None  # splits in which a limit balances the labels
    dropped: dict[str, int]  # reason to rows that would have leaked from one split into another, or that occur twice
    refused: list[RefusedRows]
    classes_left_out: dict[str, int]  # label without a training row to the rows that have it
    blank: dict[str, int]  # column to examples in which it is empty
    noted: list[RowCount]  # unusual rows that were kept
    merged: dict[str, int] | None = None  # field, turn: examples with a token that reaches across its end
    truncated: int  # number of prompts that were cut
    max_tokens: int  # longest prompt and answer, or block: the parameter, or the model's context if that is less
    template: str
    merged_labels: dict[str, list[str]] = {}  # word to the labels that share it, and are one
    subgroup_column: str | None = None

    @property
    def tests(self) -> list[str]:
        """The test split and the shifted ones, which are scored like it."""
        return ["test", *(name for name in self.splits if name not in ("train", "validation", "test"))]


def read_base(folder: Path) -> BaseFacts:
    """Read what ``dvc repro base`` wrote, but for the weights."""
    config = read_json(require(folder / "config.json", made_by="base"))
    base = BaseFacts(BaseRecord.load(folder), ModelShape.from_config(config))
    held = set(base.identity.parameters.per_layer)
    if held != {base.shape.layer_parameters}:
        weights = ", ".join(f"{size:,}" for size in sorted(held))
        raise UserError(
            f"{folder}: the cost model reads {base.shape.layer_parameters:,} parameters a layer, the weights hold "
            f"{weights}: layers of model type {base.identity.family!r} are not built as it takes them to be"
        )
    return base


def read_sizes(prepared: Path) -> PreparedSizes:
    """Read the sizes of the prepared splits."""
    path = prepared / "meta.json"
    sizes = checked(PreparedSizes, path, made_by="prepare")
    if "train" not in sizes.splits:
        raise UserError(f"{path}: no training split; dvc repro prepare")
    return sizes


def checked(kind: type[Kind], path: Path, made_by: str) -> Kind:
    """Read a JSON artifact as a record."""
    try:
        return kind.model_validate(read_json(require(path, made_by)))
    except ValidationError as error:
        raise UserError(f"{path}: {fault_of(error)}; run again: dvc repro {made_by}") from None


def fault_of(error: ValidationError) -> str:
    """The first fault of a record, with its place in it."""
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"


class CurvePoint(BaseModel):
    """A validation during training; losses in nats per answer token, FLOPs from the start of the run."""

    step: int
    epoch: float
    flops: int
    train_loss: float | None  # cross-entropy, the mean of the steps since the last point
    validation_loss: float
    validation_accuracy: float | None
    gradient_norm: float | None = None  # before clipping, the mean of these steps
    gap: float | None = None  # validation loss less training loss
    shift: float | None = None  # from the base: KL(model ‖ base) on the validation split, nats per answer token

    @model_serializer(mode="wrap")
    def _known(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not measured, also after a checkpoint was read back: a resumed run writes the same."""
        unmeasured = {name for name in ("gradient_norm", "gap", "shift") if getattr(self, name) is None}
        return {name: value for name, value in write(self).items() if name not in unmeasured}


class _Results(BaseModel):
    """Results of a training; those on the test split are unset where there was nothing to choose from."""

    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float | None = None
    test_accuracy: float | None = None


class GridRate(_Results):
    """Results of one learning rate; null where training diverged."""

    rate: float


class KeptWeights(_Results):
    """Results of the weights that an entry of ``finetune.keep`` gives.

    ``step`` is that of the best look at the validation split, or the run's last.
    """

    keep: Keep
    step: int
    validation_loss: float


class FineTuneParams(BaseModel):
    """The parameters that a fine-tune read, with a variant's settings in place."""

    device: Device
    finetune: Finetune
    first_n: int | None = None
    race: Race | None = None  # of a race alone


class RaceArm(BaseModel):
    """An arm of a race: what it trained and spent. FLOPs of ``curve`` include the passes before its first step."""

    method: str
    learning_rate: float
    boundary: int
    steps: int
    flops: int  # of its steps
    flops_backward: int  # of these, back-propagation's
    flops_validation: int  # reading the validation split
    curve: list[CurvePoint]  # one point per look


class RaceStanding(BaseModel):
    """An arm at a look: its validation scores, and how it compares with the leader.

    ``p_accuracy`` and ``p_loss`` test whether it is worse than the leader (:func:`salf.rate_choice.standings`); null
    for the leader, at the end, and where there is nothing to test.
    """

    arm: int  # its place among the arms, from 0
    validation_loss: float | None  # null where training diverged
    validation_accuracy: float | None
    p_accuracy: float | None
    p_loss: float | None
    fate: Literal["leads", "stays", "worse accuracy", "worse loss", "too many", "diverged", "won", "lost"]


class RaceLook(BaseModel):
    """A comparison of the arms that are still in the race."""

    epoch: int
    level: float | None  # of each test; null at the end, where nothing is tested
    standings: list[RaceStanding]


class RaceRecord(BaseModel):
    """A race: its arms, every look with its decisions, and all that it cost.

    ``flops`` counts every arm's steps and validations, and ``flops_before``: the passes that fill the caches, over
    both splits, each once. ``flops_winner`` is the cost of the winner's training alone, as if its rate had been known.
    """

    keep: int
    level: float  # chance at most that an arm as good as any other is dropped as worse
    arms: list[RaceArm]
    looks: list[RaceLook]
    winner: int
    flops: int
    flops_before: int
    flops_winner: int


class FineTuneRecord(Artifact):
    """``run.json`` of a fine-tuned model: what was trained, from which files, with which result.

    Of a race it describes the winner; ``flops`` and ``flops_backward`` alone are those of all arms.
    """

    made_by, file = "finetune", "run.json"

    schema_version: Literal[1] = 1
    method: str
    variant: str | None = None  # the entry of `compare.variants`; None where `compare.methods` names the method itself
    seed: int
    boundary: int
    boundary_before_budget: int | None
    trained_layers: list[int]  # from 1; of layers drawn at random, all that were drawn
    trained_units: list[str]  # the shards that the method trains; `changed_units`: those that saving rewrote
    changed_units: list[str]
    parameters: int
    trained_parameters: int
    learning_rate: float
    grid: list[GridRate]  # one entry per learning rate, ascending
    validation_examples: int
    epochs: int
    steps: int
    flops: int  # of all steps; and of the looks at the validation split, where they decided something
    flops_backward: int | None = None  # of these, back-propagation's; None in records made before it was counted
    flops_before: int | None = None  # of flops, before the first step
    flops_looks: int = 0  # of flops, of the looks
    curve: list[CurvePoint]
    kept: list[KeptWeights] = []  # the model's weights first; unset where they are the last of all planned steps
    looks: int | None = None  # validations that decided which weights are kept or when training ended
    steps_planned: int | None = None  # set with looks
    race: RaceRecord | None = None
    observed: dict[str, float] = {}  # what the technique measured, by name
    params: FineTuneParams
    plan_sha256: str
    base_sha256: str
    data_sha256: dict[str, str]
    shards: dict[str, str]  # SHA-256 by file name

    @property
    def how(self) -> Method:
        """Scope and form of the method."""
        return method_of(self.method)

    @property
    def label(self) -> str:
        """The name in the comparison: the variant's, ``race``, or the method's."""
        return self.variant or (RACE if self.race else self.method)

    @property
    def validated(self) -> KeptWeights | CurvePoint:
        """The model's results on the validation split."""
        return self.kept[0] if self.kept else self.curve[-1]

    @property
    def kept_words(self) -> str:
        """The model's weights in words; empty where they are the last of all planned steps."""
        if not self.kept:
            return ""
        kept = self.kept[0]
        words = {
            "last": "the last weights",
            "best": f"the weights of step {kept.step}, the best of {self.looks} looks at the validation split",
            "mean": "the mean of the weights over the last third of steps",
            "ema": "the exponential average of the weights over the last third of steps",
        }[kept.keep]
        early = self.steps_planned is not None and self.steps < self.steps_planned
        return f"{words}; training ended after {self.steps} of {self.steps_planned} steps" if early else words


class StatesRecord(BaseModel):
    """The origin of a split's boundary states; ``kept`` says where they are cached, seconds are wall-clock."""

    origin: Literal["computed", "continued", "reused", "off"]
    begun: int
    kept: str
    bytes: int
    int8: bool = False
    seconds_computing: float
    seconds: float


class MachineRecord(BaseModel):
    """The machine and software of a run, without host, user or path names."""

    system: str
    python: str
    cores: int
    threads: int
    memory_bytes: int
    instructions: str
    device: str
    dtype: str
    dtype_reason: str
    versions: dict[str, str]


class FineTuneClock(Artifact):
    """``reports/runs/<run>.json``: seconds and memory of a fine-tune on the machine that ran it.

    ``seconds_cache`` is what the frozen layers' pass over the training split took, in this run or an earlier one.
    """

    made_by = "finetune"

    schema_version: Literal[1] = 1
    method: str
    variant: str | None = None
    seed: int
    seconds_total: float
    seconds_cache: float
    seconds_training: float
    seconds_per_step: float
    boundary_states: dict[str, StatesRecord]
    prompts: dict[str, StatesRecord] | None = None  # keys and values of prompts, where answers alone train
    peak_memory_bytes: int
    optimizer_bytes: int | None = None  # of the optimizer's state; None in records made before it was measured
    processes: int
    machine: MachineRecord
