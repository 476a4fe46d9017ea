"""Every artifact that the page shows, read once; what is optional and absent is ``None`` or empty."""

import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow.parquet as pq

from salf.errors import reading
from salf.evidence import ScalingLaw, TraceFacts
from salf.files import require, sha256_file, sha256_folder
from salf.methods import SLOTS
from salf.metrics import Measured, MethodMetrics, Metrics, read_comparison
from salf.plan import FreezePlan
from salf.records import BaseRecord, FineTuneClock, FineTuneRecord, PreparedRecord
from stages.common.params import Params
from stages.common.study_page import StudyPage

SPLITS: Final = ("train", "validation", "test")
_MEANINGFUL_MATCH: Final = 0.05


@dataclass(frozen=True)
class Method:
    """A compared method: scores and counted cost, and what was measured on the machine that trained it."""

    name: str
    record: MethodMetrics
    measured: Measured
    slot: str = ""  # the last one that its technique fills; empty for weights, cross-entropy and AdamW


@dataclass(frozen=True)
class Artifacts:
    """The chain's artifacts in memory.

    Attributes:
        runs, clocks: by the run's name (``salf-seed1``).
    """

    base: BaseRecord
    meta: PreparedRecord
    plan: FreezePlan
    example: tuple[str, str] | None  # a prompt of the training split, and its answer
    trace: TraceFacts | None
    law: ScalingLaw | None
    gains: pd.DataFrame | None
    metrics: Metrics | None
    comparison: Mapping[str, Measured]
    predictions: pd.DataFrame | None
    runs: dict[str, FineTuneRecord]
    clocks: dict[str, FineTuneClock]
    hashes: dict[str, str]  # SHA-256 of what the page prints and other artifacts name by its hash
    few: pd.DataFrame | None  # the table of make few-shot
    study: StudyPage | None
    study_figures: dict[str, str]
    parameters: Params
    project: Path  # the project's folder, whose commit the page names

    @cached_property
    def methods(self) -> list[Method]:
        """The compared methods by slot: full fine-tuning first, then by name, numbers in it as numbers."""
        compared = self.metrics.methods if self.metrics else {}
        slots = {run.label: run.how.slot for run in self.runs.values()}
        found = [Method(name, compared[name], self.comparison[name], slots.get(name, "")) for name in compared]
        return sorted(found, key=lambda m: (("", *SLOTS).index(m.slot), m.name != "full", _by_number(m.name)))

    @property
    def metric(self) -> str:
        """The score that the page leads with, a name of ``salf.metrics.SCORES``.

        It is the accuracy, and for free answers the exact match. Where hardly any answer matches exactly it is the
        loss, because ratios of two tiny shares say nothing.
        """
        quality = self.metrics.quality if self.metrics else "accuracy"
        best = max((m.record.scores[quality].value for m in self.methods), default=0.0)
        return quality if quality == "accuracy" or best >= _MEANINGFUL_MATCH else "loss"


def load(sources: Namespace, parameters: Params) -> Artifacts:
    """Read all artifacts; ``sources`` holds their paths, and that of the ``parameters``.

    Raises:
        UserError: the model's, the data's or the plan's record is missing, or a file is damaged.
    """
    metrics = sources.metrics
    runs, drawn = sorted(sources.models.glob("[!.]*/run.json")), sorted((sources.study / "figures").glob("*.svg"))
    return Artifacts(
        base=BaseRecord.load(sources.base),
        meta=PreparedRecord.load(sources.prepared),
        plan=FreezePlan.load(require(sources.plan, "plan")),
        example=_first_example(sources.prepared / "train.parquet"),
        trace=_trace_facts(sources.traces),
        law=ScalingLaw.load(sources.law) if sources.law.exists() else None,
        gains=_table(sources.gains),
        metrics=Metrics.load(metrics) if metrics.exists() else None,
        comparison=read_comparison(require(sources.comparison, "evaluate")) if metrics.exists() else {},
        predictions=_table(sources.predictions),
        runs={path.parent.name: FineTuneRecord.load(path.parent) for path in runs},
        clocks={path.stem: FineTuneClock.load(path) for path in sorted(sources.measured.glob("[!.]*.json"))},
        hashes=_hashes(sources),
        few=_table(sources.few),
        study=StudyPage.read(sources.study),
        study_figures={file.stem: file.read_text(encoding="utf-8") for file in drawn},
        parameters=parameters,
        project=sources.params.absolute().parent,
    )


def _hashes(sources: Namespace) -> dict[str, str]:
    named = {"base": sources.base / "base.json", "prepared": sources.prepared / "meta.json"}
    named |= {split: sources.prepared / f"{split}.parquet" for split in SPLITS}
    named |= {name: getattr(sources, name) for name in ("law", "gains", "plan", "metrics", "comparison", "predictions")}
    found = {name: sha256_file(file) for name, file in named.items() if file.exists()}
    return found | ({"traces": sha256_folder(sources.traces)} if any(sources.traces.glob("*.parquet")) else {})


def _table(path: Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    form, read = ("CSV", pd.read_csv) if path.suffix == ".csv" else ("Parquet", pd.read_parquet)
    with reading(path, f"damaged {form}; run the stage that makes it again"):
        return read(path)


def _first_example(path: Path) -> tuple[str, str] | None:
    rows = pq.read_table(path, columns=["prompt", "answer"]).slice(0, 1).to_pylist() if path.exists() else []
    return (rows[0]["prompt"], rows[0]["answer"]) if rows else None


def _trace_facts(folder: Path) -> TraceFacts | None:
    part = next(iter(sorted(folder.glob("*.parquet"))), None)
    if part is None:
        return None
    with reading(part, "damaged trace; run again: dvc repro trace"):
        return TraceFacts.model_validate_json(pq.read_schema(part).metadata[b"salf"])


def _by_number(name: str) -> list[str | int]:
    """For sorting: ``freeze-8`` comes before ``freeze-15``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
