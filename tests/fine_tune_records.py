"""Complete records of a fine-tune, for tests that care about some of their fields."""

from typing import Any

from salf.records import FineTuneClock, FineTuneRecord
from stages.common.params import load_params
from tests.conftest import PROJECT


def fine_tune_record(**changes: Any) -> FineTuneRecord:
    """``run.json`` of one epoch on a model of four layers."""
    params = load_params(PROJECT / "params.yaml")
    point = {"step": 12, "epoch": 1.0, "flops": 10**12, "train_loss": 1.0}
    facts: dict[str, Any] = {
        "schema_version": 1,
        "method": "full",
        "variant": None,
        "seed": 1,
        "boundary": 0,
        "boundary_before_budget": None,
        "trained_layers": [1, 2, 3, 4],
        "trained_units": ["embedding", "layer-01", "layer-02", "layer-03", "layer-04", "final"],
        "changed_units": ["embedding", "layer-01", "layer-02", "layer-03", "layer-04", "final"],
        "parameters": 10_000,
        "trained_parameters": 10_000,
        "learning_rate": 0.001,
        "grid": [{"rate": 0.001, "validation_loss": 1.5, "validation_accuracy": 0.5}],
        "validation_examples": 64,
        "epochs": 1,
        "steps": 12,
        "flops": 10**12,
        "curve": [{**point, "validation_loss": 1.5, "validation_accuracy": 0.5}],
        "params": {"device": params.device, "finetune": params.finetune, "first_n": None},
        "plan_sha256": "c" * 64,
        "base_sha256": "b" * 64,
        "data_sha256": {"train": "d" * 64},
        "shards": {},
    }
    return FineTuneRecord(**{**facts, **changes})


def fine_tune_clock(**changes: Any) -> FineTuneClock:
    """``reports/runs/<run>.json`` of a minute on two cores."""
    machine = {
        "system": "Linux x86_64",
        "python": "3.11.7",
        "cores": 2,
        "threads": 2,
        "memory_bytes": 2**33,
        "instructions": "AVX2",
        "device": "cpu",
        "dtype": "float32",
        "dtype_reason": "as set in params.yaml",
        "versions": {"torch": "2"},
    }
    facts: dict[str, Any] = {
        "method": "full",
        "seed": 1,
        "seconds_total": 60.0,
        "seconds_cache": 0.0,
        "seconds_training": 48.0,
        "seconds_per_step": 4.0,
        "boundary_states": {},
        "peak_memory_bytes": 2**30,
        "processes": 1,
        "machine": machine,
    }
    return FineTuneClock(**{**facts, **changes})
