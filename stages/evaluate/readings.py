"""What every model is asked to read, and the panels of ``metrics.json`` that this makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from salf.engine.answers import Answer
from salf.engine.batches import Example, Split
from salf.engine.perplexity import text_examples
from salf.engine.rules import CandidateRule
from salf.engine.shift import Shift
from salf.files import sha256_file
from salf.methods import Method
from salf.metrics import KeptContext, PairsPanel, Panel, ShiftPanel
from salf.records import FineTuneRecord, PreparedRecord
from stages.common.params import Evaluate
from stages.evaluate.compare import UNTRAINED, Measures, Sampling, Scores, compare, over_methods
from stages.evaluate.groups import group_panels
from stages.evaluate.pairs import preferences, read_pairs
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
    kept: dict[str, KeptContext] = field(default_factory=dict)  # of the test split by models that drop tokens
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


def read_all(predictor: Predictor, models: Path, records: Mapping[str, FineTuneRecord]) -> Readings:
    """Let the untrained model and the fine-tuned ones in the folder ``models`` read the predictor's splits."""
    found, asked = Readings({name: {} for name in predictor.meta.tests}), predictor.params

    def read(reader: Predictor, ready: ReadyModel, run: FineTuneRecord | None) -> None:
        for name, said in found.tests.items():
            said[ready.name] = reader.predict(ready, name)
        if kept := reader.kept(ready, TEST):
            found.kept[ready.name] = kept
        if _PAIRS in reader.splits:
            found.pairs[ready.name] = reader.read(ready, _PAIRS, CandidateRule("character"))
        if run and asked.shift:
            for split, text in _shift_texts(run.how).items():
                if split in reader.splits:
                    measured = predictor.shift(ready, split, asked.shift.examples)
                    found.shifts.setdefault(text, {})[ready.name] = measured

    read(predictor, predictor.open(predictor.base, UNTRAINED), None)
    for name, run in records.items():  # nothing else holds a model: the next one is opened when it is gone
        reader = predictor.by_classes if run.how.form.classes else predictor
        reader = predictor.shorter if run.how.shortened else reader
        if run.how.answer_side:
            read(reader, reader.open_answer_side(models / name, name, run.params.finetune.answer_side), run)
        else:
            read(reader, reader.open(models / name, name, frozen_layers(run.shards, reader.shards)), run)
    return found


def _shift_texts(method: Method) -> dict[str, str]:
    """The splits on which a method's shift is measured, and what they are called: alike only what can be compared."""
    if method.form.classes:  # and the base predicts words
        return {}
    if method.answer_side:  # and plain text has no prompt after which it could act
        return {TEST: f"{TEST}, after the prompts' data"}
    return {TEST: f"{TEST}, shortened prompts" if method.shortened else TEST, _NEUTRAL: _NEUTRAL}


def panels_of(
    found: Readings,
    shifted: Mapping[str, Scores],
    tests: Mapping[str, Sequence[Example]],
    meta: PreparedRecord,
    sampling: Sampling,
) -> dict[str, Any]:
    """The fields of ``Metrics`` that hold panels; ``shifted``: scores by shifted split, ``tests``: all test splits."""
    panels: dict[str, Any] = {
        "kept": found.kept,
        "shifted": {
            name: Panel(examples=len(tests[name]), models=compare(over_methods(sampling.grouped, scores)))
            for name, scores in shifted.items()
        },
        "groups": {
            name: group_panels(examples, found.tests[name], meta, sampling)
            for name, examples in tests.items()
            if any(example.subgroup for example in examples)
        },
        "shift": {text: _shift_panel(shifts, sampling) for text, shifts in found.shifts.items()},
    }
    if file := sampling.asked.pairs:
        panel = sampling.panel({model: preferences(answers) for model, answers in found.pairs.items()})
        panels["pairs"] = PairsPanel(**dict(panel), file=file, sha256=sha256_file(Path(file)))
    return {name: panel for name, panel in panels.items() if panel}


def _shift_panel(shifts: Mapping[str, Shift], sampling: Sampling) -> ShiftPanel:
    measures: dict[str, Measures] = {
        run: {"kl_from_base": (shift.from_base, shift.tokens), "kl_to_base": (shift.to_base, shift.tokens)}
        for run, shift in shifts.items()
    }
    one = next(iter(measures.values()))
    measures[UNTRAINED] = {name: (np.zeros_like(values), weights) for name, (values, weights) in one.items()}
    runs = {method: [run for run in runs if run in shifts] for method, runs in sampling.grouped.items()}
    layers = {
        method: np.mean([shifts[run].layers for run in known], 0).tolist() for method, known in runs.items() if known
    }
    return ShiftPanel(**dict(sampling.panel(measures)), layers=layers)
