"""A base model's folder without weights, and a trace's laws and gains, as the earlier stages write them."""

import csv
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from salf.plan import FreezePlan
from stages.plan.__main__ import main

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 6, 32, 56, 53
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}
PARTS = {
    "self_attn.q_proj": HIDDEN * HIDDEN,
    "self_attn.k_proj": HIDDEN * HIDDEN // 2,
    "self_attn.v_proj": HIDDEN * HIDDEN // 2,
    "self_attn.o_proj": HIDDEN * HIDDEN,
    "mlp.gate_proj": HIDDEN * INTERMEDIATE,
    "mlp.up_proj": HIDDEN * INTERMEDIATE,
    "mlp.down_proj": HIDDEN * INTERMEDIATE,
    "input_layernorm": HIDDEN,
    "post_attention_layernorm": HIDDEN,
}
PER_LAYER = sum(PARTS.values())
# Spaces 0..6: wanders, then falls.
DEVIATION = [1.00, 0.97, 0.98, 0.96, 0.90, 0.78, 0.74]
LOSS = [90.0, 21.0, 20.5, 20.0, 19.0, 14.0, 8.0]
# value and win share of layers 1..6; layer 1 is the embedding step and would win
SCALES = {"low": 0.98, "high": 1.02, "p10": 0.9, "p50": 1.0, "p90": 1.1}
LAW = {
    "formula": "E + A·k^−α",
    "first_space": 1,
    "parameters": {"E": 0.1},
    "intervals": {"E": [0.0, None]},
    "converged": True,
    "r2": 0.9,
    "rmse": 0.1,
    "aicc": None,
    "holdout_rmse": 0.1,
    "curve_low": [],
    "curve_high": [],
}
GAINS = {
    ("deviation", "observed"): [(0.5, 0), (-0.01, 0), (0.02, 0.05), (0.06, 0.2), (0.12, 0.43), (0.04, 0.32)],
    ("deviation", "ratio"): [(9.0, 0), (-0.1, 0), (0.3, 0.1), (3.0, 0.9), (2.0, 0), (1.0, 0)],
    ("deviation", "local"): [(1.0, 0), (-0.03, 0), (0.07, 0), (0.26, 0.01), (0.64, 0.95), (0.29, 0.04)],
    ("deviation", "law"): [(0.0, 0), (0.0, 0.02), (0.0, 0.08), (0.3, 0.84), (0.2, 0.06), (0.1, 0)],
    ("loss", "law"): [(0.0, 0), (0.0, 0.1), (4.0, 0.8), (3.0, 0.1), (2.0, 0), (1.0, 0)],
    ("loss", "observed"): [(69.0, 0), (0.5, 0), (0.5, 0), (1.0, 0), (5.0, 0.3), (6.0, 0.7)],
}


def write_base(folder: Path, *, tied: bool = True) -> Path:
    folder.mkdir(parents=True)
    names = [f"model.layers.{i}.{part}.weight" for i in range(LAYERS) for part in PARTS]
    names += ["model.embed_tokens.weight", "model.norm.weight"] + ([] if tied else ["lm_head.weight"])
    identity = {
        "schema": 1,
        **dict.fromkeys(("source", "origin"), "made by a test"),
        "revision": None,
        "family": CONFIG["model_type"],
        "layers": LAYERS,
        "hidden": HIDDEN,
        "vocabulary": VOCABULARY,
        "tied_head": tied,
        "trust_remote_code": False,
        "shards": {},
        "name": "tiny",
        "weights_sha256": "ab" * 32,
        "parameters": {
            "embedding": VOCABULARY * HIDDEN,
            "per_layer": [PER_LAYER] * LAYERS,
            "norm": HIDDEN,
            "head": 0 if tied else VOCABULARY * HIDDEN,
        },
        "parameter_names": sorted(names),
    }
    files = {
        "config.json": {**CONFIG, "tie_word_embeddings": tied},
        "base.json": identity,
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def write_prepared(folder: Path) -> Path:
    folder.mkdir(parents=True)
    train = {"rows": 40, "tokens": 40 * 25, "answer_tokens": 40}
    (folder / "meta.json").write_text(json.dumps({"splits": {"train": train}, "shared_prefix_tokens": 5}))
    return folder


def write_law(
    path: Path, *, fits: bool = True, power: bool = True, quantities: tuple[str, ...] = ("deviation", "loss")
) -> Path:
    """Laws of which the tail's is the best: whether it fits, and whether that of the whole depth does, too."""
    means = {"deviation": DEVIATION, "loss": LOSS}
    laws = {}
    for name in quantities:
        mean = means[name]
        tail = [None, None, *(x + 0.001 for x in mean[3:])]
        scaled = {column: [factor * x for x in mean] for column, factor in SCALES.items()}
        laws[name] = {
            "examples": 30,
            "mean": mean,
            **scaled,
            "best": "power_tail",
            "fits": fits,
            "verdict": "a power law holds from layer 3 on." if fits else "no law fits.",
            "laws": [
                {**LAW, "name": "power", "fits": fits and power, "curve": mean[1:]},
                {**LAW, "name": "power_tail", "fits": fits, "curve": tail},
            ],
            "falling": {
                **LAW,
                "name": "power_from_peak",
                "first_space": 3,
                "fits": fits,
                "curve": [],
                "faults": [] if fits else ["r² 0.50 is below 0.9"],
            },
            "embedding_step": mean[0] - mean[1],
            "notes": [],
        }
    facts = {"layers": LAYERS, "examples": 30, "positions": 60, "trace_sha256": "cd" * 32, "confidence": 0.9}
    path.write_text(json.dumps({**facts, "schema": 1, "quantities": laws}))
    return path


def write_gains(path: Path, *, only: tuple[str, ...] = ("deviation", "loss")) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "gain", "layer", "value", "low", "high", "win_share", "embedding_step"])
        for (quantity, gain), layers in GAINS.items():
            if quantity not in only:
                continue
            for layer, (value, share) in enumerate(layers, start=1):
                writer.writerow([quantity, gain, layer, value, value - 0.01, value + 0.01, share, layer == 1])
    return path


def write_signals(path: Path, **signals: list[float | None]) -> Path:
    """The table of signals by space 0..L (7 values) or layer 1..L (6 values), as stage ``signals`` writes it."""
    rows = ["signal,layer,value"]
    for name, values in signals.items():
        numbered = enumerate(values, start=LAYERS + 1 - len(values))
        rows += [f"{name.replace('_', '-')},{number},{'' if v is None else v}" for number, v in numbered]
    path.write_text("\n".join(rows) + "\n")
    return path


class Workspace:
    """A folder with everything that the stage reads; ``plan(...)`` changes parameters and runs it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = write_base(root / "base")
        self.prepared = write_prepared(root / "prepared")
        self.law = write_law(root / "law.json")
        self.gains = write_gains(root / "gains.csv")
        self.signals = write_signals(root / "signals.csv")
        self.out = root / "out" / "plan"

    def untie(self) -> None:
        self.base = write_base(self.root / "base-untied", tied=False)

    def rewrite_law(self, **options: object) -> None:
        write_law(self.law, **options)

    def rewrite_gains(self, **options: object) -> None:
        write_gains(self.gains, **options)

    def rewrite_signals(self, **signals: list[float | None]) -> None:
        write_signals(self.signals, **signals)

    def argv(self) -> list[str]:
        names = ("base", "prepared", "law", "gains", "signals", "out")
        return [part for name in names for part in (f"--{name}", str(getattr(self, name)))]

    def plan(self, finetune: Mapping[str, object] | None = None, **params: object) -> FreezePlan:
        self.set(finetune, **params)
        main(self.argv())
        return FreezePlan.load(self.out)

    def set(self, finetune: Mapping[str, object] | None = None, **plan: object) -> None:
        params = shipped_params()
        defaults = {"selector": "salf", "quantity": "deviation", "gain": "observed", "budget": 1.0, "last_n": 2}
        defaults |= {"oracle": None, "tolerance": 1.0, "first_n": 2}
        changed = {**params, "plan": {**defaults, "seed": 1, **plan}}
        changed["finetune"] = {**params["finetune"], **(finetune or {})}
        (self.root / "params.yaml").write_text(json.dumps(changed))  # JSON is YAML, and quicker to read


@functools.cache
def shipped_params() -> dict:
    return YAML(typ="safe", pure=True).load((Path(__file__).parents[2] / "params.yaml").read_text())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    space = Workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    return space
