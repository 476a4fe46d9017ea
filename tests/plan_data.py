"""A complete freeze plan as JSON data, for a model of four layers; without torch."""

LAYERS = 4


def point(boundary):
    counts = dict.fromkeys(
        [
            "trained_layers",
            "trained_parameters",
            "flops",
            "flops_uncached",
            "flops_frozen",
            "flops_epoch",
            "optimizer_bytes",
            "gradient_bytes",
            "activation_bytes",
            "cache_bytes",
        ],
        1,
    )
    shares = dict.fromkeys(
        ["flops_share", "flops_share_uncached", "flops_share_many_epochs", "observed", "predicted"], 0.5
    )
    return {**counts, **shares, "boundary": boundary, "remaining_reduction": None, "efficient": True}


def selected(boundary, scores=None):
    return {"boundary": boundary, "reason": "in words", "scores": scores}


def artifact(boundary=2, *, tied=True):
    chosen = {"salf": boundary, "full": 0, "none": LAYERS, "last-n": 3, "random": 1}
    total = 8672 + (0 if tied else 848)
    return {
        "schema_version": 3,
        "model": {
            "name": "tiny",
            "weights_sha256": "ab",
            "family": "llama",
            "layers": LAYERS,
            "hidden": 16,
            "vocabulary": 53,
            "tied_head": tied,
        },
        "selector": "salf",
        "quantity": "deviation",
        "gain": "observed",
        "boundary": boundary,
        "frozen_layers": list(range(1, boundary + 1)),
        "trained_layers": list(range(boundary + 1, LAYERS + 1)),
        "embeddings_trained": boundary == 0,
        "norm_trained": True,
        "head_trained": not tied or boundary == 0,
        "head_note": "in words",
        "parameters": {"frozen": 1, "trained": 1, "total": total},
        "reason": "in words",
        "certainty": {"win_share": None, "value": None, "low": None, "high": None, "words": "sure"},
        "fallback": None,
        "runners_up": [{"boundary": 3, "value": 0.5, "win_share": 0}],
        "boundaries": {name: selected(at) for name, at in chosen.items()},
        "absent": {"oracle": "set plan.oracle"},
        "frontier": [point(k) for k in range(LAYERS + 1)],
        "cost_model": {
            **dict.fromkeys(["epochs", "batch_rows", "value_bytes", "rows", "parts", "shared"], 1),
            **dict.fromkeys(["queries", "attended", "positions", "seen", "frozen_queries", "frozen_attended"], 1),
            "formula": "",
            "assumptions": [],
        },
        "evidence": {
            "law_sha256": "a",
            "gains_sha256": "b",
            "trace_sha256": "c",
            "signals_sha256": None,
            "pilot_sha256": None,
        },
        "exports": {"peft": {}, "axolotl": [], "llama_factory": {}, "parameter_names": {"trained": []}, "notes": []},
    }
