"""A small random model, a prepared split of two labels, and the stage over both."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ruamel.yaml import YAML

from salf.engine.batches import Example, Split
from salf.engine.models.adapter import open_model
from salf.engine.runtime import Runtime
from stages.common.params import Signals
from stages.signals.__main__ import main
from stages.signals.sample import Sample
from tests.engine.models.tiny import save_tiny

BEGINNING = (5, 6, 7)
RUNTIME = Runtime(torch.device("cpu"), torch.float32, "as the test wants it")
PARAMS = YAML(typ="safe", pure=True).load((Path(__file__).parents[2] / "params.yaml").read_text())


def examples(count, *, beginning=BEGINNING, free=False, seed=0):
    """Prompts of random tokens and lengths, which end alike; answers of one token and more."""
    rng = np.random.default_rng(seed)
    return [
        Example(
            example_id=f"e{i:03d}",
            label=None if free else "ab"[i % 2],
            text="",
            answer="",
            prompt_ids=(*beginning, *rng.integers(10, 97, rng.integers(1, 9)).tolist(), 9),
            answer_ids=(20 + i % 2, *rng.integers(3, 97, rng.integers(0, 3)).tolist()),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("signals") / "model", tie_word_embeddings=False)


@pytest.fixture
def model(folder):
    return open_model(folder, RUNTIME.device)


def sample_of(model, rows, batch_tokens=500):
    params = Signals(**{**PARAMS["signals"], "batch_tokens": batch_tokens})
    return Sample(model, RUNTIME, Split(rows, len(BEGINNING)), params)


class Workspace:
    """A folder with what the stage reads."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.base = root, base
        self.prepared, self.out = root / "prepared", root / "reports/signals.csv"
        self.out.parent.mkdir()
        self.prepared.mkdir()
        self.write(examples(24))

    def write(self, rows) -> None:
        ids = pa.list_(pa.int32())
        columns = {name: pa.string() for name in ("example_id", "label", "text", "answer")}
        schema = pa.schema({**columns, "prompt_ids": ids, "answer_ids": ids})
        pq.write_table(pa.Table.from_pylist([vars(row) for row in rows], schema), self.prepared / "train.parquet")
        split = {"rows": len(rows), "tokens": 9, "answer_tokens": 9}
        meta = {"splits": {"train": split}, "shared_prefix_tokens": len(BEGINNING)}
        (self.prepared / "meta.json").write_text(json.dumps(meta))

    def argv(self) -> list[str]:
        pilot = self.out.with_name("pilot.json")
        places = {"--base": self.base, "--prepared": self.prepared, "--out": self.out, "--pilot": pilot}
        return [str(word) for pair in places.items() for word in pair]

    def run(self, **signals) -> dict[str, dict[int, str]]:
        """Run the stage; the table as {signal: {layer: value}}."""
        device = {"kind": "cpu", "dtype": "float32"}
        params = {**PARAMS, "device": device, "signals": {**PARAMS["signals"], **signals}}
        (self.root / "params.yaml").write_text(json.dumps(params))
        main(self.argv())
        header, *rows = [line.split(",") for line in self.out.read_text().splitlines()]
        assert header == ["signal", "layer", "value"]
        table: dict[str, dict[int, str]] = {}
        for name, layer, value in rows:
            table.setdefault(name, {})[int(layer)] = value
        return table


@pytest.fixture
def workspace(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path, folder)
