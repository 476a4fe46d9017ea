"""The model card that travels with a fine-tuned folder."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from salf.answer_folder import OPENED_BY
from salf.engine.training.forms import ADAPTER
from salf.files import write_text
from salf.plan import FreezePlan
from salf.records import BaseRecord, FineTuneRecord, PreparedLabel, PreparedRecord
from salf.settings import TASKS
from stages.finetune.save import Base


def write_cards(
    folder: Path, run: FineTuneRecord, plan: FreezePlan, base: BaseRecord, meta: PreparedRecord, named: Base
) -> None:
    """Write ``README.md`` with the Hub's YAML head; ``named``: what adapters call the base model."""
    write_text(folder / "README.md", _model_card(run, plan, base, meta))
    if (folder / ADAPTER).is_dir():
        write_text(folder / ADAPTER / "README.md", _adapter_card(run, base, meta, named))


def _model_card(run: FineTuneRecord, plan: FreezePlan, base: BaseRecord, meta: PreparedRecord) -> str:
    """The model card: what the model is, how it was made, how it scores."""
    last, train, validation = run.validated, meta.splits["train"], meta.splits["validation"]
    score = f"accuracy {last.validation_accuracy:.3f}, " if last.validation_accuracy is not None else ""
    kept = f" The model has {run.kept_words}." if run.kept else ""
    return f"""\
---
base_model: {base.name}
library_name: {"salf" if run.how.answer_side else "transformers"}
pipeline_tag: {"text-classification" if run.how.form.classes else "text-generation"}
tags: [salf, layer-freezing]
---

# {base.name}, fine-tuned by `{run.label}` (seed {run.seed})

Base: {base.name}, {base.origin}.{f" {OPENED_BY}" if run.how.answer_side else ""}

## Plan

Trained: {trained_words(run, base.layers)} — {run.how.trains}: {run.trained_parameters:,} of {run.parameters:,} \
parameters.
{head_words(run, tied=plan.model.tied_head)}
Boundary: {run.boundary} (the last frozen layer; 0 if none is). The plan's own choice: {plan.reason}

## Data

{train.rows} training and {validation.rows} validation examples ({meta.task}) of {_source_words(meta.source)}; \
training split SHA-256 `{train.sha256}`.
{_label_words(meta.labels)}
{"Each document" if TASKS[meta.task].text else "Each prompt"}\
{", without the text before its first column, which the base alone read" if run.how.shortened else ""}:

{chr(10).join(f"    {line}" for line in meta.template.splitlines())}

## Scores

Validation after {run.steps} steps ({run.epochs} epochs): {score}loss {last.validation_loss:.4f} nats \
per answer token.{kept} Scores on the test split are made after this card, by the stage `evaluate`: \
see `reports/metrics.json` of the project that made this model.

## Lineage

- base weights: `{base.weights_sha256}`
- freeze plan: `{run.plan_sha256}`
- torch {torch.__version__}, transformers {version("transformers")}, peft {version("peft")}
- peak learning rate {run.learning_rate:g}, parameters: see `run.json`
- rewritten shards: {", ".join(run.changed_units) or "none"}; all others are the base's, byte for byte
- code, machine and times: the project's run records, by `python -m flows.lineage show <this folder>`
"""


def _adapter_card(run: FineTuneRecord, base: BaseRecord, meta: PreparedRecord, named: Base) -> str:
    """On which base model the adapters sit, and where answers end."""
    head = f"base_model: {named.name}\n" if named.revision else ""
    at = f" at revision `{named.revision}`" if named.revision else ""
    end = meta.end_token_id
    stop = f"""\
Answers end with token {end}. PEFT takes the base model's settings for generation, so name it: \
`model.generate(..., eos_token_id={end})`.

"""
    return f"""\
---
{head}library_name: peft
pipeline_tag: text-generation
tags: [lora, salf]
---

# LoRA adapters for {base.name} by `{run.label}` (seed {run.seed})

Base model: `{named.name}`{at}. SHA-256 of its weights, one shard per layer: `{base.weights_sha256}`. \
The folder above holds the same model with the adapters merged.

{"" if end is None else stop}    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained("adapter")
"""


def _source_words(source: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} ({_source_words(value)})" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in source.items()
        if value is not None
    )


def _label_words(labels: Sequence[PreparedLabel]) -> str:
    words = [each.word if each.word == each.label else f"{each.word} ({each.label})" for each in labels]
    return f"Answers: {', '.join(words)}.\n" if words else ""


def trained_words(run: FineTuneRecord, depth: int) -> str:
    """The trained layers in words: ``layers 22–30``."""
    layers = _ranges(run.trained_layers)
    if len(run.trained_layers) == depth:
        return "all layers"
    embeddings = "embeddings and " if "embedding" in run.trained_units else ""
    return f"{embeddings}{layers}" if layers else "the final norm only"


def head_words(run: FineTuneRecord, *, tied: bool) -> str:
    """One sentence on the head, which is the embedding matrix where it is tied."""
    if run.how.form.layers_alone:
        return "Embeddings, final norm and head are the base's."
    if run.how.form.classes:
        return "A class head was trained in place of the language model's own, which no answer has used."
    trains = "embedding" in run.trained_units if tied else "final" in run.trained_units
    what = "The head is the embedding matrix" if tied else "The head has weights of its own"
    return f"{what} and {'trained' if trains else 'stayed frozen'}."


def _ranges(layers: Sequence[int]) -> str:
    """``layer 3``, ``layers 1–4, 7 and 9``; empty for none."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    parts = [str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True)]
    if not parts:
        return ""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(parts)}"
