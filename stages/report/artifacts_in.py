"""Every artifact that the page shows, read once; what is optional and absent is ``None`` or empty."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from salf.errors import UserError
from salf.files import read_json, require, sha256_file, sha256_folder
from salf.plan import FreezePlan
from stages.common.benchmark import PATTERN, Benchmark, read_benchmark

Json = dict[str, Any]

_TRACE_KEY = b"salf"


@dataclass(frozen=True)
class Sources:
    """Paths of the artifacts."""

    base: Path
    prepared: Path
    traces: Path
    law: Path
    gains: Path
    plan: Path
    models: Path
    measured: Path
    metrics: Path
    comparison: Path
    predictions: Path
    benchmarks: Path
    study: Path


@dataclass(frozen=True)
class Artifacts:
    """The chain's artifacts in memory.

    ``runs`` and ``measured`` are keyed by the run's name (``salf-seed1``): the deterministic record
    of the fine-tune, and what was measured on the machine while it ran. ``hashes`` names the files
    that were read, by path, with their SHA-256; ``digests`` those that other artifacts name by their
    hash, by name (``train``, ``traces``, ``law``, ``gains``, ``plan``, ``metrics``), where they are there.
    ``benchmarks`` are those in the reports' folder, by the name of their file; ``study`` is the study's summary,
    ``study_figures`` its SVG files by name.
    """

    base: Json
    meta: Json
    plan: FreezePlan
    example: Json | None
    trace: Json | None
    law: Json | None
    gains: pd.DataFrame | None
    metrics: Json | None
    comparison: pd.DataFrame | None
    predictions: pd.DataFrame | None
    runs: dict[str, Json]
    measured: dict[str, Json]
    hashes: dict[str, str]
    digests: dict[str, str]
    benchmarks: dict[str, Benchmark]
    study: Json | None
    study_figures: dict[str, str]


def load(sources: Sources) -> Artifacts:
    """Read all artifacts.

    Raises:
        UserError: the model's, the data's or the plan's record is missing, or a file is damaged.
    """
    return Artifacts(
        base=read_json(require(sources.base / "base.json", "base")),
        meta=read_json(require(sources.prepared / "meta.json", "prepare")),
        plan=FreezePlan.load(require(sources.plan, "plan")),
        example=_first_row(sources.prepared / "train.parquet"),
        trace=_trace_record(sources.traces),
        law=_json(sources.law),
        gains=_csv(sources.gains),
        metrics=_json(sources.metrics),
        comparison=_csv(sources.comparison),
        predictions=_parquet(sources.predictions),
        runs={file.parent.name: read_json(file) for file in sorted(sources.models.glob("[!.]*/run.json"))},
        measured={file.stem: read_json(file) for file in sorted(sources.measured.glob("[!.]*.json"))},
        hashes=_hashes(sources),
        digests=_digests(sources),
        benchmarks=_benchmarks(sources.benchmarks),
        study=_json(sources.study / "summary.json"),
        study_figures={
            file.stem: file.read_text(encoding="utf-8") for file in sorted((sources.study / "figures").glob("*.svg"))
        },
    )


def _benchmarks(folder: Path) -> dict[str, Benchmark]:
    """Those of this version; the short forms, made while working, are left out."""
    found = {file.stem: read_benchmark(file) for file in sorted(folder.glob(PATTERN))}
    return {name: benchmark for name, benchmark in found.items() if benchmark and not benchmark.quick}


def _hashes(sources: Sources) -> dict[str, str]:
    files = [
        sources.base / "base.json",
        sources.prepared / "meta.json",
        *sorted(sources.traces.glob("*.parquet")),
        sources.law,
        sources.gains,
        sources.plan,
        sources.metrics,
        sources.comparison,
        sources.predictions,
    ]
    return {file.as_posix(): sha256_file(file) for file in files if file.exists()}


def _digests(sources: Sources) -> dict[str, str]:
    named = {name: getattr(sources, name) for name in ("law", "gains", "plan", "metrics")}
    named |= {split: sources.prepared / f"{split}.parquet" for split in ("train", "validation", "test")}
    found = {name: sha256_file(file) for name, file in named.items() if file.exists()}
    if any(sources.traces.glob("*.parquet")):
        found["traces"] = sha256_folder(sources.traces)
    return found


def _json(path: Path) -> Json | None:
    return read_json(path) if path.exists() else None


def _csv(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged CSV ({error}); run the stage that makes it again") from None


def _parquet(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    try:
        return pq.read_table(path).to_pandas()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged Parquet ({error}); run the stage that makes it again") from None


def _first_row(path: Path) -> Json | None:
    if not path.exists():
        return None
    batch = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=["prompt", "answer"]), None)
    rows: list[Json] = batch.to_pylist() if batch is not None else []
    return rows[0] if rows else None


def _trace_record(folder: Path) -> Json | None:
    part = next(iter(sorted(folder.glob("*.parquet"))), None)
    if part is None:
        return None
    record: Json = json.loads((pq.read_schema(part).metadata or {}).get(_TRACE_KEY, b"{}"))
    return record
