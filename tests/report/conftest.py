"""A small, consistent set of artifacts in several outcomes, as the stages before the report write them."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from salf.evidence import DepthLaw, FittedLaw, ScalingLaw, Traced
from salf.files import digest_of, sha256_file, sha256_folder, write_json
from salf.methods import frozen_by_name
from salf.metrics import (
    Baseline,
    Difference,
    EqualCompute,
    Interval,
    Intervals,
    Measured,
    MethodMetrics,
    Metrics,
    write_comparison,
)
from salf.records import (
    BaseRecord,
    CurvePoint,
    ParameterSizes,
    PreparedLabel,
    PreparedRecord,
    PreparedSplit,
    RefusedRows,
)
from stages.report.__main__ import _PLACES, main
from tests.fine_tune_records import fine_tune_clock, fine_tune_record
from tests.plan_data import artifact, point, selected

LAYERS = 30
SPLITS = {"train": 384, "validation": 96, "test": 240}  # rows
BOUNDARY = 21
HOSTILE = '<script>alert("x")</script> & {{ 7 * 7 }} </pre><img src=http://evil.example/x.png>'
PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


@dataclass(frozen=True)
class Outcome:
    """What the artifacts say; accuracies by method with the half-width of their intervals."""

    accuracy: dict[str, float] = field(
        default_factory=lambda: {"full": 0.55, "salf": 0.54, "lora": 0.57, "salf+lora": 0.525}
    )
    half_width: float = 0.06
    difference_half_width: float = 0.04
    counts: tuple[int, int, int] = (80, 80, 80)  # test examples of each label
    balance: str = "all"
    task: str = "classification"
    fits: bool = True
    losses: bool = True
    seeds: tuple[int, ...] = (1, 2)
    runs: bool = True


@dataclass(frozen=True)
class Chain:
    """A folder with all artifacts."""

    root: Path
    outcome: Outcome

    @property
    def page(self) -> Path:
        return self.root / "reports/index.html"

    def argv(self, *more: str) -> list[str]:
        options = [part for name, (place, _) in _PLACES.items() for part in (f"--{name}", str(self.root / place))]
        return [*options, "--params", str(PARAMS), *more]


# Boundaries given by hand, that of the plan not among them; quality falls from layer 15 on.
GRID = {f"freeze-{k}": 0.55 - 0.004 * max(0, k - 15) for k in (0, 4, 8, 12, 15, 18, 20, 23, 26, 30)}
OUTCOMES = {
    "good": {},
    "worse": {
        "accuracy": {"full": 0.60, "salf": 0.35, "lora": 0.5},
        "half_width": 0.05,
        "difference_half_width": 0.05,
    },
    "no-law": {"fits": False, "losses": False},
    "free": {"task": "free", "seeds": (1,)},
    "single": {"accuracy": {"salf": 0.54}, "seeds": (1,)},
    "no-runs": {"runs": False},
    "uneven": {"counts": (228, 9, 3), "balance": "train"},
    "grid": {"accuracy": {"full": 0.55, **GRID, "first-n": 0.46, "lisa": 0.54}},
}


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text that stands in the prompt example and among the test examples."""
    return HOSTILE


@pytest.fixture(scope="session")
def chain_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Chain]:
    """Makes the artifacts of an outcome, given as the fields of Outcome, in a folder of their own."""

    def make(**outcome: Any) -> Chain:
        return make_chain(tmp_path_factory.mktemp("chain"), Outcome(**outcome))

    return make


class Pages(dict[str, tuple[Chain, str]]):
    """Artifacts and page of every outcome, by its name; made when first asked for: each takes seconds."""

    def __init__(self, chain_of: Callable[..., Chain]) -> None:
        super().__init__()
        self._chain_of = chain_of

    def __missing__(self, name: str) -> tuple[Chain, str]:
        chain = self._chain_of(**OUTCOMES[name])
        main(chain.argv())
        self[name] = (chain, chain.page.read_text(encoding="utf-8"))
        return self[name]


@pytest.fixture(scope="session")
def pages(chain_of: Callable[..., Chain]) -> Pages:
    """The pages that the tests share."""
    return Pages(chain_of)


def make_chain(root: Path, outcome: Outcome) -> Chain:
    """Write all artifacts below a folder."""
    for folder in ("data/base", "data/prepared", "data/traces", "data/plan", "data/models", "reports/runs"):
        (root / folder).mkdir(parents=True)
    BASE.save(root / "data/base")
    _prepared(root / "data/prepared", outcome)
    _trace(root / "data")
    _law(root, outcome)
    _gains(root / "reports/gains.csv", outcome)
    _plan(root, outcome)
    if outcome.runs:
        _runs(root, outcome)
        _metrics(root / "reports", outcome)
        _predictions(root / "reports", outcome)
    return Chain(root, outcome)


SHARDS = {"embedding.safetensors": "e" * 64, "layer-01.safetensors": "1" * 64}
BASE = BaseRecord(
    schema=1,
    source="embedded",
    origin="dequantised from 4-bit GGUF weights (Q4_1) of SmolLM2-135M-Instruct",
    name="SmolLM2-135M-Instruct",
    revision=None,
    family="llama",
    layers=LAYERS,
    hidden=576,
    vocabulary=49152,
    tied_head=True,
    trust_remote_code=False,
    parameters=ParameterSizes(embedding=28_311_552, per_layer=[3_540_000] * LAYERS, norm=576, head=0),
    parameter_names=[],
    shards=SHARDS,
    weights_sha256=digest_of(SHARDS),
)


def _prepared(folder: Path, outcome: Outcome) -> None:
    classes = outcome.task == "classification"
    words = ("numpy", "scipy", "torch") if classes else ()
    rows = {"example_id": ["t0"], "prompt": [f"Return the sum. {HOSTILE}\nLibrary:"], "answer": [" numpy"]}
    for number, name in enumerate(SPLITS):
        pq.write_table(pa.table({**rows, "example_id": [f"t{number}"]}), folder / f"{name}.parquet")
    source = {"numpy": 950, "scipy": 50} if classes else {}
    drawn = dict(zip(words, outcome.counts, strict=False))
    balanced = {"all": list(SPLITS), "train": ["train"], "none": []}[outcome.balance]
    splits = {
        name: PreparedSplit(
            rows=n,
            tokens=40_000,
            answer_tokens=384,
            prompt_tokens_min=40,
            prompt_tokens_max=118,
            label_counts=dict.fromkeys(drawn, n // 3) if name in balanced else drawn,
            source_label_counts=source if name in balanced else drawn,
            sha256=sha256_file(folder / f"{name}.parquet"),
        )
        for name, n in SPLITS.items()
    }
    record = PreparedRecord(
        schema=1,
        task=outcome.task,
        source={"name": "docstrings", "versions": {"numpy": "2.4.6"}, "sha256": "f" * 64},
        splits=splits,
        shared_prefix_tokens=24,
        end_token_id=None,
        choice_score=None,
        chat_template=None,
        labels=[PreparedLabel(label=word, word=f" {word}", token_ids=[i]) for i, word in enumerate(words)],
        balance=outcome.balance if classes else None,
        dropped={"near-duplicate of another split": 17, "empty text": 0},
        refused=[RefusedRows(reason="names the library itself", count=41, split="train")],
        classes_left_out={},
        blank={},
        noted=[],
        truncated=3,
        max_tokens=512,
        template="{text}\nLibrary:",
    )
    record.save(folder)


def _trace(data: Path) -> None:
    record = {
        "schema": 1,
        "model": BASE.name,
        "weights_sha256": BASE.weights_sha256,
        "data_sha256": sha256_file(data / "prepared/train.parquet"),
        "dtype": "float32",
        "versions": {"torch": "2.13.0"},
        **dict.fromkeys(("layers", "hidden", "vocabulary", "examples"), 1),
    }
    table = pa.table({"example_id": ["t0"]}).replace_schema_metadata({b"salf": json.dumps(record).encode()})
    pq.write_table(table, data / "traces/part-00000.parquet")


def deviation_curve() -> np.ndarray:
    """Wanders until layer 20, then falls: what a first look at the embedded model showed. [L+1]"""
    k = np.arange(LAYERS + 1)
    return 1.0 + 0.02 * np.sin(k) - 0.14 * np.clip((k - 20) / 10, 0, 1) ** 0.8


def loss_curve() -> np.ndarray:
    """From above 100 nats to a plateau at 20, then down to 8. [L+1]"""
    k = np.arange(LAYERS + 1)
    return np.where(k == 0, 110.0, 21 - 0.1 * k - 11 * np.clip((k - 24) / 6, 0, 1))


def _law(root: Path, outcome: Outcome) -> None:
    quantities = {"deviation": _quantity(deviation_curve(), 0.01, 0.05, outcome.fits)}
    if outcome.losses:
        quantities["loss"] = _quantity(loss_curve(), 0.4, 3.0, False)
    law = ScalingLaw(
        schema=1,
        layers=LAYERS,
        examples=192,
        positions=192,
        trace_sha256=sha256_folder(root / "data/traces"),
        confidence=0.9,
        trace=Traced(model="SmolLM2", space="normed", target="output", dtype="float32"),
        quantities=quantities,
    )
    law.save(root / "reports/scaling_law.json")


def _quantity(mean: np.ndarray, width: float, spread: float, fits: bool) -> DepthLaw:
    names = ("power_tail", "power", "exponential", "constant")
    return DepthLaw(
        examples=192,
        mean=mean.tolist(),
        low=(mean - width).tolist(),
        high=(mean + width).tolist(),
        p10=(mean - spread).tolist(),
        p50=mean.tolist(),
        p90=(mean + spread).tolist(),
        laws=[_one_law(name, mean[1:], rank) for rank, name in enumerate(names)],
        falling=_one_law("power_from_peak", mean[1:], 0).model_copy(update={"faults": [] if fits else ["R² is low"]}),
        best="power_tail",
        fits=fits,
        verdict="A power law over the tail from layer 20 describes it." if fits else "No law fits; see AICc.",
        embedding_step=float(mean[0] - mean[1]),
        notes=[],
    )


def _one_law(name: str, curve: np.ndarray, rank: int) -> FittedLaw:
    start = 20 if name in ("power_tail", "power_from_peak") else 1
    shown = [None if k + 1 < start else float(v + 0.004 * rank) for k, v in enumerate(curve)]
    return FittedLaw(
        name=name,
        formula="E + A·k^−α",
        first_space=start,
        parameters={"E": 0.5 + rank, "A": 1.25, "alpha": 0.3},
        intervals={"E": [0.4, 0.6 + rank], "A": [1.0, 1.5], "alpha": [0.2, 0.4]},
        converged=rank != 2,
        fits=rank == 0,
        r2=0.97 - 0.2 * rank,
        rmse=0.0123 + rank / 100,
        aicc=None if rank == 3 else -120.5 + 10 * rank,
        holdout_rmse=0.02 + rank / 100,
        curve=shown,
        curve_low=[None if v is None else v - 0.01 for v in shown],
        curve_high=[None if v is None else v + 0.01 for v in shown],
    )


def _gains(path: Path, outcome: Outcome) -> None:
    rows = []
    for quantity, mean in (("deviation", deviation_curve()), ("loss", loss_curve()))[: 1 + outcome.losses]:
        steps = mean[:-1] - mean[1:]
        for gain in ("observed", "ratio", "local", "marginal"):
            values = steps if gain == "observed" else np.sin(np.arange(LAYERS) / 4)
            for layer, value in enumerate(values, 1):
                absent = gain == "ratio" and layer < 5
                wins = 0.62 if layer == BOUNDARY else 0.38 if layer == BOUNDARY + 1 else 0.0
                bounds = (None, None, None) if absent else (value, value - 0.004, value + 0.004)
                rows.append((quantity, gain, layer, *bounds, wins, layer == 1))
    columns = ["quantity", "gain", "layer", "value", "low", "high", "win_share", "embedding_step"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


def _frontier_point(k: int, mean: np.ndarray, fits: bool) -> dict:
    trained = 28_311_552 * (k == 0) + 3_540_000 * (LAYERS - k) + 576
    share = 0.02 + 0.98 * (1 - k / LAYERS)
    shares = {"flops_share": 0.7 * share, "flops_backward_share": 0.5 * share}
    return point(k) | {
        "trained_layers": LAYERS - k,
        "trained_parameters": trained,
        "flops": int(1e15 * share),
        "flops_share": share,
        "flops_backward": int(7e14 * share),
        "flops_backward_share": 0.9 * share,
        "lora": {**dict.fromkeys(("flops", "flops_backward"), int(4e14 * share)), **shares} if k < LAYERS else None,
        "flops_share_uncached": min(1.0, share * 1.2),
        "flops_share_many_epochs": share * 0.9,
        "optimizer_bytes": 8 * trained,
        "gradient_bytes": 4 * trained,
        "activation_bytes": 9_000_000 * (LAYERS - k) + 1000,
        "observed": float(mean[k]),
        "predicted": float(mean[k]) + 0.002 * fits,
        "remaining_reduction": float((mean[max(k, 1)] - mean[-1]) / (mean[1] - mean[-1])),
        "efficient": k >= 19 or k == 0,
    }


def _plan(root: Path, outcome: Outcome) -> None:
    mean = deviation_curve()
    total = 28_311_552 + 3_540_000 * LAYERS + 576
    trained = 3_540_000 * (LAYERS - BOUNDARY) + 576
    chosen = {"salf": BOUNDARY, "full": 0, "none": LAYERS, "last-n": 22, "random": 13}
    warning = None if outcome.fits else "R² is low"
    by_law = selected(20) | {"reason": "the law", "interval": [19, 21], "warning": warning}
    plan = artifact(BOUNDARY) | {
        "trained_layers": list(range(BOUNDARY + 1, LAYERS + 1)),
        "parameters": {"frozen": total - trained, "trained": trained, "total": total},
        "reason": f"Layer {BOUNDARY} has the largest observed gain in deviation.",
        "certainty": {"win_share": 0.62, "value": 0.031, "low": 0.02, "high": 0.04, "words": "Fairly sure: 62 %."},
        "fallback": None if outcome.fits else "no law fits, so observed gains decide.",
        "runners_up": [{"boundary": 22, "value": 0.028, "win_share": 0.38}],
        "boundaries": {name: selected(boundary) for name, boundary in chosen.items()} | {"salf-law": by_law},
        "absent": {},
        "frontier": [_frontier_point(k, mean, outcome.fits) for k in range(LAYERS + 1)],
    }
    sizes = {"layers": LAYERS, "hidden": BASE.hidden, "vocabulary": BASE.vocabulary}
    plan["model"] |= {"name": BASE.name, "weights_sha256": BASE.weights_sha256, **sizes}
    plan["cost_model"] |= {"epochs": 2, "formula": "forward + 2 × backward"}
    plan["cost_model"]["assumptions"] = ["Boundary states are computed once."]
    plan["evidence"] |= {
        "law_sha256": sha256_file(root / "reports/scaling_law.json"),
        "gains_sha256": sha256_file(root / "reports/gains.csv"),
        "trace_sha256": sha256_folder(root / "data/traces"),
    }
    layers = list(range(BOUNDARY, LAYERS))
    plan["exports"] |= {
        "peft": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": layers, "layers_pattern": "layers"},
        "axolotl": ["^model.norm.", f"^model.layers.({'|'.join(map(str, layers))})."],
        "llama_factory": {"finetuning_type": "freeze", "freeze_trainable_layers": len(layers)},
        "parameter_names": {"trained": [f"model.layers.{i}.mlp.up_proj.weight" for i in layers]},
        "notes": ["LLaMA-Factory: the final norm stays frozen."],
    }
    write_json(root / "data/plan/freeze_plan.json", plan)


COST = {
    "full": (1.0, 134_515_008, 1.9, 3_900),
    "salf": (0.314, 31_860_576, 0.48, 1_500),
    "lora": (0.68, 2_442_240, 1.4, 2_700),
    "salf+lora": (0.24, 732_672, 0.41, 1_150),
    "first-n": (0.75, 56_631_552, 1.7, 3_100),
    "lisa": (0.71, 106_000_000, 1.6, 2_200),
    **{
        name: (1 - 0.033 * k, 134_515_008 - 3_540_000 * k, 1.9 - 0.06 * k, 3_900 - 100 * k)
        for name in GRID
        for k in [int(name.removeprefix("freeze-"))]
    },
}


def _runs(root: Path, outcome: Outcome) -> None:
    splits = {name: sha256_file(root / f"data/prepared/{name}.parquet") for name in SPLITS}
    for method, accuracy in outcome.accuracy.items():
        share, trained, step, memory = COST[method]
        for seed in outcome.seeds:
            folder = root / "data/models" / f"{method}-seed{seed}"
            folder.mkdir()
            fine_tune_record(
                method=method,
                seed=seed,
                boundary=BOUNDARY if "salf" in method else 0,
                learning_rate=1e-4,
                trained_parameters=trained,
                flops=round(share * 1e15),
                steps=48,
                curve=[_curve_point(i, share, accuracy, outcome, seed) for i in range(5)],
                base_sha256=BASE.weights_sha256,
                plan_sha256=sha256_file(root / "data/plan/freeze_plan.json"),
                data_sha256=splits,
                shards={"embedding.safetensors": "e" * 64, "layer-01.safetensors": f"{method}-{seed}"},
            ).save(folder)
            fine_tune_clock(
                method=method, seed=seed, seconds_per_step=step + 0.001 * seed, peak_memory_bytes=memory * 2**20
            ).save(root / "reports/runs" / f"{method}-seed{seed}.json")


def _curve_point(i: int, share: float, accuracy: float, outcome: Outcome, seed: int) -> CurvePoint:
    right = 0.25 + (accuracy - 0.25) * (1 - math.exp(-i)) + 0.004 * seed
    return CurvePoint(
        step=12 * i,
        epoch=i / 2,
        flops=round(share * 1e15 * i / 4),
        train_loss=None,
        validation_loss=2.4 * math.exp(-i / 3),
        validation_accuracy=right if outcome.task == "classification" else None,
    )


def _interval(value: float, width: float) -> Interval:
    return Interval(value=value, low=value - width, high=value + width)


def _scores(accuracy: float, outcome: Outcome, loss: float) -> dict[str, Interval]:
    found = {"loss": _interval(loss, 0.1)}
    if outcome.task == "free":
        return {"exact_match": _interval(0.01, 0.01)} | found
    values = {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.007, "macro_f1": accuracy - 0.013}
    return {name: _interval(value, outcome.half_width) for name, value in values.items()} | found


def _metrics(folder: Path, outcome: Outcome) -> None:
    plain = {"untrained": (0.31, 4.4)}
    if outcome.task == "classification":
        plain |= {"tfidf": (0.44, 1.7), "majority": (0.125, 2.08)}
    metrics = Metrics(
        layout=1,
        task=outcome.task,
        quality="accuracy" if outcome.task == "classification" else "exact_match",
        intervals=Intervals(resamples=1000, confidence=0.95),
        baselines={
            name: Baseline(scores=_scores(accuracy, outcome, loss), n=240) for name, (accuracy, loss) in plain.items()
        },
        runs={},
        methods={method: _method(method, accuracy, outcome) for method, accuracy in outcome.accuracy.items()},
    )
    metrics.save(folder / "metrics.json")
    measured = {method: _measured(method, outcome) for method in outcome.accuracy}
    write_comparison(folder / "comparison.csv", metrics, measured)


def _method(method: str, accuracy: float, outcome: Outcome) -> MethodMetrics:
    share, trained, _, _ = COST[method]
    entry: dict[str, Any] = {"boundary": frozen_by_name(method) or 0}
    if "salf" in method:
        entry = {"boundary": BOUNDARY, "boundary_before_budget": 18}
    full = outcome.accuracy.get("full")
    if full is not None:
        gap, score = (2 * (full - accuracy), "loss") if outcome.task == "free" else (accuracy - full, "accuracy")
        half = outcome.difference_half_width
        difference = Difference(value=gap, low=gap - half, high=gap + half, detectable=1.43 * half)
        equal = EqualCompute(validation_accuracy=0.5 + accuracy - full, full_validation_accuracy=0.47)
        entry |= {"flops_share": share, "flops_backward_share": 0.9 * share, "differences": {score: difference}}
        entry["at_equal_compute"] = None if score == "loss" else equal
    scores = _scores(accuracy, outcome, 3.0 - 2 * accuracy)
    known = {"trained_parameters": trained, "flops": share * 1e15, "seeds": list(outcome.seeds)}
    known["flops_backward"] = 0.6 * known["flops"]
    return MethodMetrics(scores=scores, epochs=2.0, steps=48.0, **known, **entry)


def _measured(method: str, outcome: Outcome) -> Measured:
    _, _, step, memory = COST[method]
    cache = 7.0 if "salf" in method else 0.0
    known = {"seconds_per_step": step, "seconds_training": 48 * step, "seconds_cache": cache}
    if "full" in outcome.accuracy:
        known["seconds_share"] = (48 * step + cache) / (48 * COST["full"][2])
        known["peak_memory_share"] = memory / COST["full"][3]
    return Measured(peak_memory_bytes=memory * 2**20, **known)


def _predictions(folder: Path, outcome: Outcome) -> None:
    rows = []
    for method in outcome.accuracy:
        for i in range(24):
            right = i % 2 == 0
            text = HOSTILE if i < 2 else f"Return the {i}-th thing of an array."
            predicted = "numpy" if right else "scipy"
            rows.append((f"{method}-seed1", f"x{i:02d}", text, "numpy", predicted, right, 0.9 - i / 100, 0.5))
    columns = ["run", "example_id", "text", "label", "predicted", "correct", "probability", "loss"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "predictions.parquet")
