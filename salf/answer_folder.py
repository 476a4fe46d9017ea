"""Answer-side folders: what one holds, and where its weights take over from the base model's. No torch here.

The folder of a model that was tuned on the answer side is not an ordinary one. Its weights act only at positions after
the prompt part, which the base model reads. It names its base, so a program that opens it needs both.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, ValidationError

from salf.errors import UserError
from salf.files import read_json, write_json
from salf.plan_records import Natural, Positive, Record
from salf.records import fault_of

ANSWER_SIDE: Final = "answer_side.json"
MODEL_TYPE: Final = "salf_answer_side"  # in the folder's config.json: transformers refuses to open it
OPENED_BY: Final = (
    "Not an ordinary model folder: its weights act only after the prompt part, which the base model reads. "
    "Open it with salf.AnswerSideModel.from_pretrained(folder), and never merge it into the base."
)

Prompt = tuple[Sequence[int], int]  # a prompt's token ids, and how many of them the base model reads


class BaseWeights(Record):
    """The model that reads the prompt part."""

    source: str  # a folder's absolute path or a Hub name
    revision: str | None  # of a Hub name
    dtype: str  # of the weights when they were hashed and tuned, such as float32
    sha256: dict[str, str]  # of the tensors in memory, by unit: embedding, layer-01 …, final


class AnswerSideRecord(Record):
    """``answer_side.json``.

    Attributes:
        trained_prompt_tokens: the last tokens of a prompt that are on the trained side, if equally many everywhere.
    """

    schema_version: Literal[1] = 1
    opened_by: str = OPENED_BY
    form: Literal["weights", "lora"]  # whether the folder holds trained weights, or a LoRA adapter of PEFT's
    boundary: Natural  # layers 1..boundary are the base's at all positions
    base: BaseWeights
    trained_prompt_tokens: Positive | None
    invocation_tokens: list[int] | None  # what the trained side of every prompt begins with, where that tells its place
    files: dict[str, str] = Field(default_factory=dict)  # SHA-256 of each file of weights

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it from its folder; a ``UserError`` says that it is missing or damaged."""
        if not (folder / ANSWER_SIDE).is_file():
            raise UserError(f"{folder}: no {ANSWER_SIDE}; an answer-side model's folder has one")
        try:
            return cls.model_validate(read_json(folder / ANSWER_SIDE))
        except ValidationError as error:
            raise UserError(f"{folder / ANSWER_SIDE}: damaged: {fault_of(error)}; save the model again") from None

    def save(self, folder: Path) -> None:
        """Write it into its folder."""
        write_json(folder / ANSWER_SIDE, self.model_dump(mode="json"))

    def split_of(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt the base model reads; 0 where the record does not tell."""
        if self.trained_prompt_tokens is not None:
            return max(0, len(prompt) - self.trained_prompt_tokens)
        return max(0, last_place(prompt, self.invocation_tokens or []))


def is_answer_side(folder: Path) -> bool:
    """Whether a folder holds an answer-side model, which nothing but ``salf`` opens."""
    return (folder / ANSWER_SIDE).is_file()


def trained_prompt_tokens(prompts: Iterable[Prompt]) -> int | None:
    """The number of prompt tokens on the trained side, where it is the same for all prompts."""
    counts = {len(ids) - split for ids, split in prompts}
    return counts.pop() if len(counts) == 1 else None


def invocation_tokens(prompts: Sequence[Prompt]) -> list[int] | None:
    """The longest beginning that the trained sides of all prompts share, if its last place in each prompt is there.

    PEFT and vLLM look for the last place of these tokens in a prompt, and activate an adapter (aLoRA) from there on.
    """
    alike = common_beginning([tuple(ids[split:]) for ids, split in prompts])
    found = alike and all(last_place(ids, alike) == split for ids, split in prompts)
    return alike if found else None


def common_beginning(rows: Sequence[tuple[int, ...]]) -> list[int]:
    """The tokens that all rows begin with."""
    # What the least and the greatest begin with, all begin with.
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(rows), max(rows), strict=False))]


def last_place(ids: Sequence[int], sought: Sequence[int]) -> int:
    """Where ``sought`` begins for the last time in ``ids``; -1 if it is nowhere."""
    places = range(len(ids) - len(sought), -1, -1) if sought else ()
    return next((at for at in places if list(ids[at : at + len(sought)]) == list(sought)), -1)
