"""A small study's tables, written by hand: two data sets of forty examples, two seeds, boundaries 0, 2 and 4 of 4."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.study.description import Description
from stages.study.tables import records
from tests.study.first_round import choices, read

EXAMPLES = 40
LIMITS = {"data": {"limits": {"train": 40, "validation": 20}}}
FLOPS = {"full": 100, "freeze-2": 50, "freeze-4": 10}


@dataclass
class Tables:
    """Makes a study's tables out of how many answers were right."""

    folder: Path
    runs: list[dict] = field(default_factory=list)
    said: list[dict] = field(default_factory=list)
    choices: list[dict] = field(default_factory=list)
    settings: dict[str, dict] = field(
        default_factory=lambda: {"s": {"epochs": 3, **LIMITS}, "later": {"epochs": 4, **LIMITS}}
    )

    def run(self, data_set, method, right, seed=1, budget="epochs", flops=100, **more):
        """A fine-tune whose first ``right`` examples are answered rightly; ``right`` may be a list of 0 and 1."""
        correct = right if isinstance(right, list) else [int(i < right) for i in range(EXAMPLES)]
        point = f"{data_set}-{method}-{seed}-{budget}-{more.get('settings', 's')}{more.get('method_settings', '')}"
        boundary = int(method.removeprefix("freeze-")) if method.startswith("freeze-") else 0
        row = {
            "point": point,
            "data_set": data_set,
            "group": data_set,
            "measure": "accuracy",
            "model": "tiny",
            "seed": seed,
            "method": method,
            "boundary": boundary,
            "layers": 4,
            "budget": budget,
            "epochs": 3.0,
            "rates": "0.1",
            "learning_rate": 0.1,
            "quality": sum(correct) / len(correct),
            "validation_loss": 1.0,
            "validation_accuracy": 0.5,
            "validation_examples": 20,
            "flops": flops,
            "machine": "Some Processor",
            "device": "cpu",
            "dtype": "float32",
            "settings": "s",
            "method_settings": "",
            "code": "c",
        }
        self.runs.append({**row, **more})
        self.said += [
            {"point": point, "example_id": f"x{i:03d}", "label": self.label(i), "correct": bool(one), "loss": 2.0 - one}
            for i, one in enumerate(correct)
        ]

    def both_seeds(self, data_set, right, **more):
        """Fine-tunes by method, alike with both seeds; their operations are those of FLOPS."""
        for method, count in right.items():
            for seed in (1, 2):
                self.run(data_set, method, count, seed, flops=FLOPS[method], **more)

    def label(self, example):
        """Of a test example: three of four are common."""
        return "rare" if example % 4 == 0 else "common"

    def choice(self, data_set, rule, boundary, selector=None, deciding_share=None, plan="s"):
        self.choices.append(
            {
                "data_set": data_set,
                "model": "tiny",
                "rule": rule,
                "selector": selector or rule,
                "boundary": boundary,
                "layers": 4,
                "reason": "because",
                "deciding_share": deciding_share,
                "settings": plan,
            }
        )

    def write(self) -> Path:
        pd.DataFrame(self.runs).to_csv(self.folder / "runs.csv", index=False)
        pd.DataFrame(self.choices, columns=list(self.choices[0])).to_csv(self.folder / "choices.csv", index=False)
        pq.write_table(pa.Table.from_pylist(self.said), self.folder / "predictions.parquet")
        (self.folder / "settings.json").write_text(json.dumps(self.settings))
        return self.folder


@pytest.fixture
def tables(tmp_path) -> Tables:
    return Tables(tmp_path)


@pytest.fixture
def two_data_sets(tables) -> Tables:
    """On ``a`` freezing two of four layers is as good as full; on ``b`` it costs a tenth; freezing all is bad."""
    right = {"a": {"full": 32, "freeze-2": 32, "freeze-4": 12}, "b": {"full": 36, "freeze-2": 32, "freeze-4": 8}}
    for data_set, methods in right.items():
        tables.both_seeds(data_set, methods)
        tables.choice(data_set, "half", 2)
        tables.choice(data_set, "none", 4)
        tables.choice(data_set, "full", 0)
        tables.choice(data_set, "salf", 4 if data_set == "a" else 2)
    return tables


def drawn_and_judged(tables, resamples=200):
    """What was drawn of every case, and the table of all selectors."""
    drawn = read(tables.write(), resamples)
    return drawn, choices(drawn)


def judged(tables, resamples=200):
    return drawn_and_judged(tables, resamples)[1]


def rows_of(table):
    """A table's rows with its columns as attributes; what is missing is None."""
    return [SimpleNamespace(**row) for row in records(table.reset_index() if table.index.name else table)]


def one(table, data_set, rule):
    (row,) = [row for row in rows_of(table) if (row.data_set, row.rule) == (data_set, rule)]
    return row


def by_rule(table):
    """Rows of selectors by name."""
    return {row.rule: row for row in rows_of(table)}


@pytest.fixture
def described():
    """A description of two data sets and one model, with some parts changed."""

    def make(**changes):
        return Description.model_validate(
            {
                "budget_hours": 1.0,
                "seeds": [1, 2],
                "boundaries": [0, 0.5, 1],
                "learning_rates": {0: [0.001, 0.002], 0.5: [0.01, 0.02]},
                "widen": 0,
                "methods": {},
                "common": {},
                "models": {"m": {"layers": 8}},
                "data_sets": {"a": {}, "b": {}},
                **changes,
            }
        )

    return make
