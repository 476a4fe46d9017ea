"""Parquet parts as the tracing stage writes them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def write_part():
    """write_part(path, ids, deviation [rows, L+1], loss [rows, L+1] or None entries, **origin)."""

    def write(path: Path, ids, deviation, loss=None, **origin):
        spaces = len(deviation[0])
        curve = pa.list_(pa.float32(), spaces)
        rows = len(ids)
        table = pa.table(
            {
                "example_id": pa.array(ids, pa.string()),
                "split": pa.array(["train"] * rows),
                "position": pa.array(range(rows), pa.int32()),
                "token_id": pa.array([5] * rows, pa.int32()),
                "label": pa.array(["a"] * rows),
                "deviation": pa.array([list(map(float, r)) for r in deviation], curve),
                "loss": pa.array([None if r is None else list(map(float, r)) for r in loss or [None] * rows], curve),
            }
        )
        salf = {"schema": 1, "model": "toy", "layers": spaces - 1, "space": "normed", "target": "output", **origin}
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({"salf": json.dumps(salf)}), path)

    return write
