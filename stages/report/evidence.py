"""The evidence for the numbers: the study, which is no part of the chain, examples, data, model, the run's identity."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pandas as pd

from salf.ledger import Machine
from salf.records import PreparedLabel, PreparedRecord
from salf.settings import TASKS
from stages.common.run_record import code_state, versions
from stages.common.study_page import Cell as Shown
from stages.report.answer import chosen_method
from stages.report.artifacts import SPLITS, Artifacts
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.quality import label_shares
from stages.report.wording import count, parameters, percent, size

_TEXT_LIMIT: Final = 400
_PROMPT_LIMIT: Final = 3000
_NAMED: Final = 5  # files that differ from the commit
_STUDY_FIGURES: Final = {
    "methods": "What each method costs and gains",
    "balance": "What the trace promises and what was measured",
}


def study_section(artifacts: Artifacts) -> Section | None:
    """Headline, tables and figures of the study; ``None`` if there is none."""
    found, figures = artifacts.study, artifacts.study_figures
    if found is None:
        return None
    section = Section("study", "The study", "Which method? What the study measured")
    section.sentences += [found.headline, found.scope, "This section is not part of the chain: make study measures it."]
    for name in found.report:
        shown = found.tables[name]
        rows = [[_shown(cell) for cell in row] for row in shown.rows]
        section.tables.append(Table(f"study-{name.replace(' ', '-')}", shown.caption, shown.headings, rows))
    section.figures += [
        Figure(f"study-{name}", title, figures[name]) for name, title in _STUDY_FIGURES.items() if name in figures
    ]
    return section


def examples_section(artifacts: Artifacts) -> Section | None:
    """Test examples that the plan's model got wrong and right, with full fine-tuning's answer; ``None`` for text."""
    if TASKS[artifacts.meta.task].text:
        return None
    section = Section("examples", "Examples", "Examples, right and wrong")
    predictions, method = artifacts.predictions, chosen_method(artifacts)
    shown = artifacts.parameters.evaluate.examples_shown
    if predictions is None or predictions.empty:
        section.sentences.append("No predictions have been written yet.")
        return section
    if "split" in predictions:  # of shifted splits, too
        predictions = predictions[predictions.split == "test"]
    runs = sorted(predictions.run.unique())
    run = next((r for r in runs if method and r.rsplit("-seed", 1)[0] == method.name), runs[0])
    # The answers given with the highest probability; by identifier where there is none or two are equal.
    mine = predictions[predictions.run == run].sort_values(["probability", "example_id"], ascending=[False, True])
    full = next((r for r in runs if r.startswith("full-seed") and r != run), None)
    rows = predictions[predictions.run == full]
    other = dict(zip(rows.example_id, rows.predicted.astype(str), strict=True))
    section.sentences.append(
        f"{run} got {count(int(mine.correct.sum()))} of {count(len(mine))} test examples right. Most probable answers "
        "first."
    )
    for word, each, most in (("wrong", mine[~mine.correct], -(-shown // 2)), ("right", mine[mine.correct], shown // 2)):
        if not each.empty:
            body = [_example(row, other if full else None) for row in each.head(most).itertuples()]
            headings = ["Text", "Label", "Predicted", *([full] if full else [])]
            section.tables.append(Table(f"examples-{word}", f"Test examples that {run} got {word}.", headings, body))
    return section


def data_section(artifacts: Artifacts) -> Section:
    """Splits, labels, what was dropped, refused and cut, and one prompt as the model reads it."""
    meta = artifacts.meta
    section = Section("data", "Data", "The data")
    source = next((meta.source[key] for key in ("name", "path", "kind", "source") if meta.source.get(key)), "data")
    dropped = [f"{count(n)} {reason}" for reason, n in sorted(meta.dropped.items()) if n]
    refused = [f"{rows.split} {count(rows.count)} {rows.reason}".strip() for rows in meta.refused]
    section.sentences.append(
        f"Task: {meta.task}; source: {source}. "
        f"Dropped: {', '.join(dropped) or 'none'}. Refused: {', '.join(refused) or 'none'}. " + _lengths(meta)
    )
    section.tables.append(_splits(meta))
    if meta.labels:
        section.tables.append(_labels(meta))
    section.tables.append(_flat("data-source", "Identity of the source.", meta.source, folded=True))
    if artifacts.example:
        prompt, answer = artifacts.example
        section.prompt = prompt if len(prompt) <= _PROMPT_LIMIT else f"… {prompt[-_PROMPT_LIMIT:]}", answer
    return section


def _lengths(meta: PreparedRecord) -> str:
    if not TASKS[meta.task].text:
        return f"Cut from the left to {count(meta.max_tokens)} tokens: {count(meta.truncated)} prompts."
    whole = [
        f"{name} {count(split.documents)} documents in {count(split.rows)} blocks, {count(split.short_blocks)} shorter"
        for name, split in meta.splits.items()
    ]
    return f"Blocks of {count(meta.max_tokens)} tokens; no block holds two documents: {'; '.join(whole)}."


def model_section(artifacts: Artifacts) -> Section:
    """Name, origin, size and hashes of the base model."""
    base, counts = artifacts.base, artifacts.base.parameters
    section = Section("model", "Model", "The model")
    total = counts.embedding + sum(counts.per_layer) + counts.norm + counts.head
    section.sentences.append(f"{base.name}: {base.origin}")
    facts = [
        ("Family", base.family),
        ("Revision", base.revision or "none given"),
        ("Layers", count(base.layers)),
        ("Hidden size", count(base.hidden)),
        ("Vocabulary", count(base.vocabulary)),
        ("Head", "tied to the embedding" if base.tied_head else "of its own"),
        ("Parameters", f"{count(total)} ({parameters(total)})"),
        ("Embedding parameters", f"{count(counts.embedding)} ({percent(counts.embedding / total)})"),
        ("Weights SHA-256", base.weights_sha256),
    ]
    section.tables.append(Table("model-facts", "The base model.", ("Property", "Value"), facts))
    return section


def links(artifacts: Artifacts) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Every artifact that names its input by a hash, in the order of the chain.

    Of each its name, what it read, the SHA-256 that it keeps of this, and that of today's file.
    """
    weights, hashes, plan = artifacts.base.weights_sha256, artifacts.hashes, artifacts.plan
    if (trace := artifacts.trace) is not None:
        yield "trace", "weights", trace.weights_sha256, weights
        yield "trace", "train split", trace.data_sha256, hashes.get("train")
    if artifacts.law is not None:
        yield "scaling_law.json", "traces", artifacts.law.trace_sha256, hashes.get("traces")
    yield "freeze_plan.json", "weights", plan.model.weights_sha256, weights
    yield "freeze_plan.json", "scaling law", plan.evidence.law_sha256, hashes.get("law")
    yield "freeze_plan.json", "gains", plan.evidence.gains_sha256, hashes.get("gains")
    for name, run in artifacts.runs.items():
        yield name, "weights", run.base_sha256, weights
        yield name, "plan", run.plan_sha256, hashes.get("plan")
        for split, known in run.data_sha256.items():
            yield name, f"{split} split", known, hashes.get(split)


def lineage_words(artifacts: Artifacts) -> list[str]:
    """Whether the hashes that artifacts keep of their inputs are those of the inputs; if not, whose are others."""
    known = [(reader, what, kept == found) for reader, what, kept, found in links(artifacts) if kept]
    other = [f"{reader} was made from another {what}." for reader, what, same in known if not same]
    if not other:
        return [f"All {count(len(known))} hashes that artifacts keep of their inputs agree with the inputs."]
    verdict = f"{count(len(other))} of {count(len(known))} hashes that artifacts keep of their inputs differ from them:"
    return [f"{verdict} this page mixes runs. dvc repro updates what is out of date.", *other]


def identity_section(artifacts: Artifacts) -> Section:
    """Commit, parameters, hashes, versions and machines."""
    section = Section("identity", "Identity", "Identity of this run")
    code, changed = code_state(artifacts.project)
    if code["commit"] is None:
        section.sentences.append("This folder is no git repository: the page cannot name the commit that made it.")
    else:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        state = f"with uncommitted changes in {', '.join(changed[:_NAMED])}{more}" if changed else "without changes"
        section.sentences.append(f"Made from commit {code['commit']}{'' if changed else ','} {state}.")
    section.sentences += lineage_words(artifacts)
    here = Machine.here()
    facts = {**here.model_dump(exclude_none=True, exclude={"memory_bytes"}), "memory": size(here.memory_bytes)}
    trained_on = {name: clock.machine.model_dump(exclude_none=True) for name, clock in artifacts.clocks.items()}
    section.tables += [
        _flat("hashes", "SHA-256 of the artifacts on this page.", artifacts.hashes),
        _flat("versions", "Versions on the machine that rendered the page.", versions()),
        _flat("machine", "The machine that rendered the page.", facts),
        _flat("trained-on", "The machines that trained.", trained_on, folded=True),
        _flat("parameters", "All parameters (params.yaml).", artifacts.parameters.model_dump(mode="json"), folded=True),
    ]
    return section


def _flat(name: str, caption: str, value: Mapping[str, Any], *, folded: bool = False) -> Table:
    return Table(name, caption, ("Name", "Value"), _leaves(value, ""), folded)


def _leaves(value: Any, name: str) -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) pairs; lists and scalars as compact JSON or plain text."""
    if isinstance(value, Mapping) and (value or not name):
        return [pair for key, inner in value.items() for pair in _leaves(inner, f"{name}.{key}" if name else str(key))]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def _splits(meta: PreparedRecord) -> Table:
    columns: Columns[str] = {
        "Split": str,
        "Rows": lambda name: number(meta.splits[name].rows, count),
        "Tokens": lambda name: number(meta.splits[name].tokens, count),
        "Longest prompt": lambda name: number(meta.splits[name].prompt_tokens_max, count),
        "SHA-256": lambda name: Cell(meta.splits[name].sha256, mark="hash"),
    }
    return table("splits", "The splits; no group of rows falls into two of them.", _present(meta), columns)


def _present(meta: PreparedRecord) -> list[str]:
    return [*(name for name in SPLITS if name in meta.splits), *meta.tests[1:]]


def _labels(meta: PreparedRecord) -> Table:
    def rows_of(split: str) -> Callable[[PreparedLabel], Cell]:
        counts = meta.splits[split].label_counts
        return lambda one: number(counts.get(one.label, 0), count, _frequency(meta, split, one.label))

    columns: Columns[PreparedLabel] = {"Label": lambda one: one.label, "Word": lambda one: one.word}
    columns |= {split.capitalize(): rows_of(split) for split in _present(meta)}
    caption = "Labels, their words, rows per split and, in small print, their frequency there and in the source."
    return table("labels", caption, meta.labels, columns)


def _frequency(meta: PreparedRecord, split: str, label: str) -> str:
    here, source = (label_shares(meta, split, of).get(label) for of in ("label_counts", "source_label_counts"))
    return percent(here, 1) if source is None or source == here else f"{percent(here, 1)}, source {percent(source, 1)}"


def _example(row: Any, other: Mapping[str, str] | None) -> list[Cell]:
    text = row.text if len(row.text) <= _TEXT_LIMIT else f"{row.text[:_TEXT_LIMIT]} …"
    probability = "" if pd.isna(row.probability) else f"probability {percent(row.probability)}"
    cells = [Cell(text, mark="text"), Cell(row.label), Cell(row.predicted, probability)]
    return cells if other is None else [*cells, Cell(other.get(row.example_id, ""))]


def _shown(cell: Shown) -> Cell:
    """A cell of the study; the interval of a number is small print below it."""
    if isinstance(cell, str):
        return Cell(cell.replace("`", ""))
    value, text = cell
    shown, bracket, ends = text.partition(" [")
    return Cell(shown, bracket.strip() + ends, value, numeric=True)
