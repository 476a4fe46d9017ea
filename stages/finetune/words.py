"""What a fine-tune trained and left alone, in words, by the content of its ``run.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

from salf.methods import FIRST_N, LISA, frozen_by_name


def trained_words(run: Mapping[str, Any], depth: int) -> str:
    """What was trained, by the content of ``run.json``: ``layers 22–30``."""
    layers = _ranges(run["trained_layers"])
    if len(run["trained_layers"]) == depth:
        return "all layers"
    embeddings = "embeddings and " if "embedding" in run["trained_units"] else ""
    return f"{embeddings}{layers}" if layers else "the final norm only"


def frozen_words(run: Mapping[str, Any], depth: int) -> str:
    """What was left as it is, adapters aside."""
    layers = _ranges([layer for layer in range(1, depth + 1) if layer not in run["trained_layers"]])
    final = "" if run["lora"] or "final" in run["trained_units"] else "final norm"
    parts = [part for part in ("embeddings" if run["boundary"] else "", layers, final) if part]
    return f"{_listed(parts)} frozen" if parts else "nothing frozen"


def head_words(run: Mapping[str, Any], *, tied: bool) -> str:
    """What became of the head, which is the embedding matrix where it is tied."""
    if run["lora"]:
        return "Embeddings, final norm and head are the base's."
    trains = "embedding" in run["trained_units"] if tied else "final" in run["trained_units"]
    what = "The head is the embedding matrix" if tied else "The head has weights of its own"
    return f"{what} and {'trained' if trains else 'stayed frozen'}."


def choice_words(run: Mapping[str, Any]) -> str:
    """Who chose what was trained."""
    scope = run["selector"]
    if frozen_by_name(scope) is not None:
        return "The boundary was given by hand."
    if scope == FIRST_N:
        return "The first layers were trained as a control: back-propagation passed through all of them."
    if scope == LISA:
        settings = run["params"]["finetune"]
        return (
            f"Layers drawn at random: {settings['lisa_layers']} trained at a time, others after every "
            f"{settings['lisa_steps']} steps (LISA, arXiv 2403.17919); those named are all that were drawn."
        )
    before = run.get("boundary_before_budget")
    moved = "" if before is None else f"; without `plan.budget` it would be {before}"
    return f"The boundary is that of the selector `{scope}`{moved}."


def _ranges(layers: Sequence[int]) -> str:
    """``layer 3``, ``layers 1–4, 7 and 9``; empty for none."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    parts = [str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True)]
    if not parts:
        return ""
    return f"layer{'s' * (len(layers) > 1)} {_listed(parts)}"


def _listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
