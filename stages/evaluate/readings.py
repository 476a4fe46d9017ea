"""Lets every model read the test splits, pairs of continuations and neutral text, one model after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from salf.engine.answers import Answer
from salf.engine.batches import Split
from salf.engine.perplexity import text_examples
from salf.engine.rules import CandidateRule
from salf.engine.shift import Shift
from salf.records import FineTuneRecord
from stages.common.params import Evaluate
from stages.evaluate.compare import UNTRAINED
from stages.evaluate.pairs import read_pairs
from stages.evaluate.predict import Predictor, ReadyModel, frozen_layers
from stages.evaluate.scores import Predictions
from stages.evaluate.texts import documents

TEST: Final = "test"
_PAIRS, _NEUTRAL = "pairs of continuations", "neutral text"  # no test split has such a name
_BLOCK_TOKENS: Final = 128  # of neutral text


@dataclass(frozen=True)
class Readings:
    """What the models said, by their names."""

    tests: dict[str, dict[str, Predictions]]  # to every test split
    pairs: dict[str, list[Answer]] = field(default_factory=dict)
    shifts: dict[str, dict[str, Shift]] = field(default_factory=dict)  # of fine-tuned models, on every text


def further_splits(asked: Evaluate, base: Path) -> dict[str, Split]:
    """Read the files that the parameters name, by the base model's tokenizer."""
    found = {}
    if asked.pairs:
        found[_PAIRS] = Split(read_pairs(Path(asked.pairs), base), 0)
    if asked.shift and asked.shift.neutral:
        blocks = text_examples(base, documents(Path(asked.shift.neutral)), _BLOCK_TOKENS)
        found[_NEUTRAL] = Split(blocks[: asked.shift.examples], 0)
    return found


def read_all(
    predictor: Predictor, tests: Sequence[str], models: Path, records: Mapping[str, FineTuneRecord]
) -> Readings:
    """Let the untrained model and the fine-tuned ones in the folder ``models`` read the predictor's splits."""
    found, asked = Readings({name: {} for name in tests}), predictor.params

    def read(ready: ReadyModel, run: FineTuneRecord | None) -> None:
        for name in tests:
            found.tests[name][ready.name] = predictor.predict(ready, name)
        if _PAIRS in predictor.splits:
            found.pairs[ready.name] = predictor.read(ready, _PAIRS, CandidateRule("character"))
        if run and asked.shift:
            for text in (TEST, _NEUTRAL):
                alone = text == _NEUTRAL and run.how.answer_side  # there is no prompt after which it could act
                if text in predictor.splits and not alone:
                    measured = predictor.shift(ready, text, asked.shift.examples)
                    found.shifts.setdefault(text, {})[ready.name] = measured

    read(predictor.open(predictor.base, UNTRAINED), None)
    for name, run in records.items():  # nothing else holds a model: the next one is opened when it is gone
        if run.how.answer_side:
            read(predictor.open_answer_side(models / name, name, run.params.finetune.answer_side), run)
        else:
            reader = predictor.shorter if run.how.shortened else predictor
            read(reader.open(models / name, name, frozen_layers(run.shards, reader.shards)), run)
    return found
