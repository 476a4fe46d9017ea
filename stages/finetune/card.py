"""The model card that travels with a fine-tuned folder."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from salf.plan import FreezePlan
from stages.finetune.save import Base
from stages.finetune.words import choice_words, frozen_words, head_words, trained_words


def model_card(run: dict[str, Any], plan: FreezePlan, base: dict[str, Any], meta: dict[str, Any]) -> str:
    """Markdown with the hub's YAML head: what this model is, how it was made, how it scores.

    Args:
        run: the content of ``run.json``.
        plan: the freeze plan.
        base: the content of the base's ``base.json``.
        meta: the content of the prepared data's ``meta.json``.
    """
    depth = base["layers"]
    how = "LoRA adapters, merged into the weights" if run["lora"] else "the weights themselves"
    last = run["curve"][-1]
    accuracy = last["validation_accuracy"]
    score = f"accuracy {accuracy:.3f}, " if accuracy is not None else ""
    lines = [
        "---",
        f"base_model: {base['name']}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [salf, layer-freezing]",
        "---",
        "",
        f"# {base['name']}, fine-tuned by `{run['method']}` (seed {run['seed']})",
        "",
        f"Base: {base['name']}, {base['origin']}.",
        "",
        "## Plan",
        "",
        f"Trained: {trained_words(run, depth)} — {how}; {frozen_words(run, depth)}. "
        f"{run['trained_parameters']:,} of {run['parameters']:,} parameters.",
        head_words(run, tied=plan.model.tied_head),
        f"{choice_words(run)} The plan's own choice: {plan.reason}",
        "",
        "## Data",
        "",
        f"{meta['splits']['train']['rows']} training and {meta['splits']['validation']['rows']} validation examples "
        f"({meta['task']}) of {_source_words(meta['source'])}; "
        f"training split SHA-256 `{meta['splits']['train']['sha256']}`.",
        *_label_words(meta["labels"]),
        "",
        "Each prompt:",
        "",
        *(f"    {line}" for line in meta["template"].splitlines()),
        "",
        "## Scores",
        "",
        f"Validation after {run['steps']} steps ({run['epochs']} epochs): {score}loss {last['validation_loss']:.4f} "
        "nats per answer token. "
        "Scores on the test split are made after this card, by the stage `evaluate`: see `reports/metrics.json` "
        "of the project that made this model.",
        "",
        "## Lineage",
        "",
        f"- base weights: `{base['weights_sha256']}`",
        f"- freeze plan: `{run['plan_sha256']}`",
        f"- torch {torch.__version__}, transformers {version('transformers')}, peft {version('peft')}",
        f"- peak learning rate {run['learning_rate']:g}, parameters: see `run.json`",
        f"- rewritten shards: {', '.join(run['changed_units'])}; all others are the base's, byte for byte",
        "- code, machine and times: the project's run records, by `python -m flows.lineage show <this folder>`",
        "",
    ]
    return "\n".join(lines)


def adapter_card(run: dict[str, Any], named: Base, base: dict[str, Any], meta: dict[str, Any]) -> str:
    """Markdown with the hub's YAML head for the folder of adapters: on which base model, and where answers end.

    Args:
        run: the content of ``run.json``.
        named: what the adapters call the base model.
        base: the content of the base's ``base.json``.
        meta: the content of the prepared data's ``meta.json``.
    """
    at = f" at revision `{named.revision}`" if named.revision else ""
    end = meta["end_token_id"]
    stop = [
        f"Answers end with token {end}. PEFT takes the base model's settings for generation, so name it: "
        f"`model.generate(..., eos_token_id={end})`.",
        "",
    ]
    lines = [
        "---",
        *([f"base_model: {named.name}"] if named.revision else []),
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora, salf]",
        "---",
        "",
        f"# LoRA adapters for {base['name']} by `{run['method']}` (seed {run['seed']})",
        "",
        f"Base model: `{named.name}`{at}. SHA-256 of its weights, one shard per layer: `{base['weights_sha256']}`. "
        "The folder above holds the same model with the adapters merged.",
        "",
        *(stop if end is not None else []),
        "    from peft import AutoPeftModelForCausalLM",
        "",
        '    model = AutoPeftModelForCausalLM.from_pretrained("adapter")',
        "",
    ]
    return "\n".join(lines)


def _source_words(source: Mapping[str, Any]) -> str:
    parts = [
        f"{key} ({_source_words(value)})" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in source.items()
        if value is not None
    ]
    return ", ".join(parts)


def _label_words(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    if not labels:
        return []
    words = [each["word"] if each["word"] == each["label"] else f"{each['word']} ({each['label']})" for each in labels]
    return [f"Answers: {', '.join(words)}."]
