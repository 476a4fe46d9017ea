"""What the numbers rest on: examples, the data, the model, the plan's exports, the run's identity."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from salf.errors import UserError
from salf.export import FORMATS
from stages.report import identity
from stages.report.artifacts_in import Artifacts
from stages.report.quality import SPLITS, label_shares
from stages.report.tables import Cell, Column, Section, Table, columns, number_cell, pairs
from stages.report.wording import count, number, parameters, percent

_TEXT_LIMIT = 400
_PROMPT_LIMIT = 3000
_TOOLS = {
    "peft": "PEFT",
    "trl": "TRL",
    "trainer": "transformers' Trainer",
    "axolotl": "axolotl",
    "llama-factory": "LLaMA-Factory",
    "torchtune": "torchtune, trained parameters by name",
    "names": "Trained parameters, by name",
}


def examples_section(predictions: pd.DataFrame | None, method: str | None, shown: int) -> Section:
    """Test examples that the plan's model got wrong and right, with full fine-tuning's answer."""
    section = Section("examples", "Examples", "Examples, right and wrong")
    if predictions is None or predictions.empty:
        section.sentences.append("No predictions have been written yet.")
        return section
    runs = sorted(predictions["run"].unique())
    run = next((r for r in runs if method and r.rsplit("-seed", 1)[0] == method), runs[0])
    mine = predictions[predictions["run"] == run]
    full = next((r for r in runs if r.startswith("full-seed") and r != run), None)
    other = {} if full is None else _by_example(predictions[predictions["run"] == full])
    right = int(mine["correct"].sum())
    section.sentences.append(
        f"{run} got {count(right)} of {count(len(mine))} test examples right. Most probable answers first."
    )
    for correct, word in ((False, "wrong"), (True, "right")):
        rows = _surest(mine[mine["correct"] == correct], -(-shown // 2) if not correct else shown // 2)
        if not rows.empty:
            section.tables.append(_example_table(f"examples-{word}", f"What {run} got {word}.", rows, full, other))
    return section


def data_section(artifacts: Artifacts) -> Section:
    """Splits, classes, what was dropped, refused and cut, and one prompt as the model sees it."""
    meta = artifacts.meta
    section = Section("data", "Data", "The data")
    source = meta.get("source", {})
    name = source.get("name") or source.get("path") or source.get("source") or "data"
    section.sentences.append(f"Task: {meta.get('task')}; source: {name}. {_losses(meta)}")
    section.tables.append(_splits(meta))
    if meta.get("labels"):
        section.tables.append(_labels(meta))
    section.tables.append(_flat_table("data-source", "Identity of the source.", source))
    if artifacts.example:
        prompt = artifacts.example["prompt"]
        section.extra["prompt"] = prompt if len(prompt) <= _PROMPT_LIMIT else f"… {prompt[-_PROMPT_LIMIT:]}"
        section.extra["answer"] = artifacts.example["answer"]
    return section


def model_section(artifacts: Artifacts) -> Section:
    """Name, origin, size and hashes of the base model."""
    base = artifacts.base
    section = Section("model", "Model", "The model")
    counts = base["parameters"]
    total = counts["embedding"] + sum(counts["per_layer"]) + counts["norm"] + counts["head"]
    section.sentences.append(f"{base['name']}: {base['origin']}")
    tied = "tied to the embedding" if base["tied_head"] else "of its own"
    facts = [
        ("Family", base["family"]),
        ("Revision", base.get("revision") or "none given"),
        ("Layers", count(base["layers"])),
        ("Hidden size", count(base["hidden"])),
        ("Vocabulary", count(base["vocabulary"])),
        ("Head", tied),
        ("Parameters", f"{count(total)} ({parameters(total)})"),
        ("Embedding parameters", f"{count(counts['embedding'])} ({percent(counts['embedding'] / total)})"),
        ("Weights SHA-256", base["weights_sha256"]),
    ]
    section.tables.append(pairs("model-facts", "The base model.", facts, ("Property", "Value")))
    section.extra["shards"] = sorted(base["shards"].items())
    return section


def exports_section(artifacts: Artifacts) -> Section:
    """The plan in the words of other tools, as blocks to copy."""
    section = Section("exports", "Exports", "Use the plan elsewhere")
    plan = artifacts.plan
    section.sentences.append("The same frozen and trained layers for other tools; every block can be copied as it is.")
    section.sentences += plan.exports.notes
    blocks = []
    for name, form in FORMATS.items():
        try:
            blocks.append((_TOOLS[name], form(plan)))
        except UserError as refused:
            section.sentences += [str(refused)] * (str(refused) not in section.sentences)
    section.extra["blocks"] = blocks
    return section


def identity_section(artifacts: Artifacts, parameters_used: Mapping[str, Any], folder: Path) -> Section:
    """Commit, parameters, hashes, versions and machines."""
    section = Section("identity", "Identity", "Identity of this run")
    head = identity.commit(folder)
    if head.hash is None:
        section.sentences.append("This folder is no git repository: the page cannot name the commit that made it.")
    elif head.changed:
        section.sentences.append(f"Made from commit {head.hash} with uncommitted changes in {', '.join(head.changed)}.")
    else:
        section.sentences.append(f"Made from commit {head.hash}, without uncommitted changes.")
    section.tables = [
        _flat_table("hashes", "SHA-256 of the artifacts on this page.", artifacts.hashes, ("Artifact", "SHA-256")),
        *_trace_versions(artifacts),
        _flat_table("versions", "Versions on the machine that rendered the page.", identity.versions()),
        _flat_table("machine", "The machine that rendered the page.", identity.machine()),
        *_measured_on(artifacts),
        _flat_table("parameters", "All parameters (params.yaml).", parameters_used, ("Parameter", "Value")),
    ]
    return section


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) pairs; lists and scalars as compact JSON or plain text."""
    if isinstance(value, Mapping) and value:
        return [
            pair for key, inner in value.items() for pair in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(prefix, text)]


def _flat_table(
    name: str, caption: str, value: Mapping[str, Any], headings: tuple[str, str] = ("Name", "Value")
) -> Table:
    return pairs(name, caption, flatten(value) if value else [], headings)


def _trace_versions(artifacts: Artifacts) -> Iterable[Table]:
    if artifacts.trace:
        yield _flat_table("trace-record", "What the trace says of itself.", artifacts.trace)


def _measured_on(artifacts: Artifacts) -> Iterable[Table]:
    facts = ("device", "dtype", "threads", "machine", "versions")
    seen: dict[str, list[str]] = {}
    for run, record in artifacts.measured.items():
        key = json.dumps({fact: record[fact] for fact in facts if fact in record}, sort_keys=True)
        seen.setdefault(key, []).append(run)
    for number_, (key, runs) in enumerate(seen.items(), 1):
        yield _flat_table(f"trained-on-{number_}", f"Where {', '.join(runs)} trained.", json.loads(key))


def _losses(meta: Mapping[str, Any]) -> str:
    dropped = [f"{count(n)} {reason}" for reason, n in sorted(meta.get("dropped", {}).items()) if n]
    refused = [f"{r.get('split', '')} {count(r['count'])} {r['reason']}".strip() for r in meta.get("refused", [])]
    return (
        f"Dropped: {', '.join(dropped) or 'none'}. Refused: {', '.join(refused) or 'none'}. "
        f"Cut from the left to {count(meta.get('max_tokens'))} tokens: {count(meta.get('truncated', 0))} prompts."
    )


def _splits(meta: Mapping[str, Any]) -> Table:
    rows = [
        [
            Cell(name),
            *(
                number_cell(number(split.get(k)), count(number(split.get(k))))
                for k in ("rows", "tokens", "prompt_tokens_max")
            ),
            Cell(str(split.get("sha256", "")), mark="hash"),
        ]
        for name, split in _in_order(meta)
    ]
    headings = [*columns(("Split", "Rows", "Tokens", "Longest prompt")), Column("SHA-256", numeric=False)]
    return Table("splits", "The splits; no group of rows falls into two of them.", headings, rows)


def _labels(meta: Mapping[str, Any]) -> Table:
    splits = _in_order(meta)
    rows = []
    for entry in meta["labels"]:
        label = entry["label"]
        cells = [
            number_cell(n := (split.get("label_counts") or {}).get(label, 0), count(n), _frequency(meta, name, label))
            for name, split in splits
        ]
        rows.append([Cell(label), Cell(entry["word"]), *cells])
    headings = ("Label", "Word", *(name.capitalize() for name, _ in splits))
    caption = "Labels, their words, rows per split and, in small print, their frequency there and in the source."
    return Table("labels", caption, columns(headings, words=2), rows)


def _frequency(meta: Mapping[str, Any], split: str, label: str) -> str:
    here, source = (label_shares(meta, split, of).get(label) for of in ("label_counts", "source_label_counts"))
    return percent(here, 1) if source is None or source == here else f"{percent(here, 1)}, source {percent(source, 1)}"


def _in_order(meta: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, meta["splits"][name]) for name in SPLITS if name in meta["splits"]]


def _surest(rows: pd.DataFrame, shown: int) -> pd.DataFrame:
    """The answers given with the highest probability; by identifier where two are equally sure."""
    key = "probability" if "probability" in rows and rows["probability"].notna().any() else "example_id"
    return rows.sort_values([key, "example_id"], ascending=[key == "example_id", True]).head(shown)


def _by_example(rows: pd.DataFrame) -> dict[str, str]:
    return dict(zip(rows["example_id"], rows["predicted"].astype(str), strict=True))


def _example_table(name: str, caption: str, rows: pd.DataFrame, full: str | None, other: Mapping[str, str]) -> Table:
    headings = ["Text", "Label", "Predicted", *([full] if full else [])]
    body = []
    for row in rows.to_dict("records"):
        text = str(row["text"])
        sure = number(row.get("probability"))
        cells = [
            Cell(text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]} …", mark="text"),
            Cell(str(row["label"])),
            Cell(str(row["predicted"]), f"probability {percent(sure)}" if sure is not None else ""),
        ]
        body.append([*cells, *([Cell(other.get(row["example_id"], ""))] if full else [])])
    return Table(name, caption, columns(headings, words=len(headings)), body)
