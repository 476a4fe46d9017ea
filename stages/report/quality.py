"""Quality and cost of the compared methods, and their learning curves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from stages.common.figures.palette import variable
from stages.report import figures
from stages.report.artifacts_in import Artifacts
from stages.report.headline import BASELINES
from stages.report.tables import Cell, Figure, Section, Table, columns, number_cell
from stages.report.wording import (
    THIN,
    Interval,
    compact,
    count,
    decimal,
    flops,
    listing,
    moved_words,
    number,
    parameters,
    percent,
    seconds,
    size,
    span,
)

BASELINE_NAMES: Final = {name: words.removeprefix("the ") for name, words in BASELINES.items()}
SCORES: Final = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "loss": "loss",
}
SPLITS: Final = ("train", "validation", "test")
_FEW: Final = 10  # test examples of a label; below, resampling them understates how much their scores vary
_NAMED: Final = 5
OVER_CLASSES: Final = ("balanced_accuracy", "macro_f1")
_NO_RUNS: Final = "No fine-tuned model has been evaluated yet; dvc repro trains and scores the methods of compare."


@dataclass(frozen=True)
class Method:
    """A compared method over its seeds: mean scores, cost, and what was measured on the machine.

    Shares are of full fine-tuning. ``detectable`` differences from it are those at 80 % power. ``seconds`` is the
    whole training, the boundary's cache included; ``peak_memory`` is in bytes; ``at_equal_compute`` holds the
    method's last validation scores and, prefixed with ``full_``, those of full fine-tuning when it had spent as much,
    in the middle of its schedule.
    """

    name: str
    scores: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    detectable: Mapping[str, float]
    at_equal_compute: Mapping[str, float]
    boundary: float | None
    before_budget: float | None
    trained: float | None
    trained_share: float | None
    cost: float | None
    cost_share: float | None
    seconds: float | None
    seconds_share: float | None
    step_seconds: float | None
    peak_memory: float | None
    memory_share: float | None
    seeds: int


def methods(artifacts: Artifacts) -> list[Method]:
    """The compared methods: full fine-tuning first, then by name, numbers in it as numbers."""
    table: Mapping[str, Any] = (artifacts.metrics or {}).get("methods", {})
    names = sorted(table, key=lambda name: (name != "full", _by_number(name)))
    measured = _measured(artifacts)
    return [_method(name, table[name], measured.get(name, {})) for name in names]


def baselines(artifacts: Artifacts) -> dict[str, dict[str, Interval]]:
    """Scores of the baselines that the metrics hold, by name: untrained, majority, tfidf."""
    found: Mapping[str, Any] = (artifacts.metrics or {}).get("baselines", {})
    return {name: scores_of(found[name]) for name in BASELINE_NAMES if found.get(name)}


def scores_of(record: Mapping[str, Any]) -> dict[str, Interval]:
    """The scores of a SCORE record, each with its interval where there is one."""
    scores = {name: _interval(record, name) for name in SCORES}
    return {name: score for name, score in scores.items() if score is not None}


def label_shares(meta: Mapping[str, Any], split: str, counts: str = "label_counts") -> dict[str, float]:
    """Each label's share of a split's examples, or of those before its limit; empty where there are no labels."""
    found: Mapping[str, int] = (meta["splits"].get(split) or {}).get(counts) or {}
    return {label["label"]: found.get(label["label"], 0) / sum(found.values()) for label in meta["labels"] if found}


def label_sentences(meta: Mapping[str, Any]) -> list[str]:
    """What was balanced over the labels, their frequencies, and labels with too few test examples for intervals."""
    shares = {split: found for split in SPLITS if (found := label_shares(meta, split))}
    if not shares:
        return []
    named = {"all": SPLITS, "train": ("train",)}.get(meta.get("balance", "none"), ())
    source = {split: label_shares(meta, split, "source_label_counts") or shares[split] for split in shares}
    balanced = [split for split in shares if split in named and shares[split] != source[split]]
    kept = [split for split in shares if split not in balanced]
    words = f"Balanced over the labels: {listing(balanced) or 'no split'}."
    if kept:
        words += f" The source’s label frequencies remain in {listing(kept)}."
    if "test" in balanced:
        words += " Test scores are therefore those of equal label frequencies, not of the source’s."
    ranges = [f"{split} {_range(found)}" for split, found in shares.items()]
    sentences = [words, f"Label frequencies, lowest to highest: {'; '.join(ranges)}."]
    tested: Mapping[str, int] = meta["splits"].get("test", {}).get("label_counts") or {}
    few = [f"{name} ({tested.get(name, 0)})" for name in shares.get("test", {}) if tested.get(name, 0) < _FEW]
    if few:
        rest = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        shown = f"{', '.join(few[:_NAMED])}{rest}"
        sentences.append(
            f"Fewer than {_FEW} test examples of {shown}: their share of the intervals of balanced accuracy and "
            "macro-F1 is too narrow."
        )
    return sentences


def _range(shares: Mapping[str, float]) -> str:
    rare, common = (pick(shares, key=lambda label: shares[label]) for pick in (min, max))
    low, high = percent(shares[rare], 1), percent(shares[common], 1)
    return f"{low} each" if low == high else f"{low} ({rare}) to {high} ({common})"


def quality_section(artifacts: Artifacts, metric: str) -> Section:
    """Table and figure of quality against cost."""
    section = Section("quality", "Quality and cost", "Quality and cost")
    compared, plain = methods(artifacts), baselines(artifacts)
    if not compared:
        section.sentences.append(_NO_RUNS)
    section.sentences += label_sentences(artifacts.meta)
    if compared or plain:
        section.tables.append(_scores(compared, plain, metric))
    if compared:
        section.tables.append(_costs(compared))
    points = [
        figures.Point(m.name, m.cost_share, m.scores[metric])
        for m in compared
        if m.cost_share is not None and metric in m.scores
    ]
    if points:
        lines = {BASELINE_NAMES[name]: scores[metric].value for name, scores in plain.items() if metric in scores}
        title = _seen(compared, metric)
        svg = figures.quality_cost("fig-quality", title, f"test {SCORES[metric]}", points, lines)
        caption = "Vertical strokes: interval over the test examples. Dashed lines: baselines without fine-tuning."
        section.figures.append(Figure(title, svg, caption))
        section.figures.append(_cost_shares(compared))
    return section


def curves_section(artifacts: Artifacts) -> Section:
    """Validation accuracy and loss against the compute spent."""
    section = Section("curves", "Learning curves", "Learning curves")
    reference = max(
        (number(r.get("flops")) or 0.0 for r in artifacts.runs.values() if r["method"] == "full"), default=0.0
    )
    unit, label = (reference, "share of full’s FLOPs") if reference else (1e15, "PFLOP spent")
    for key, name in (("validation_accuracy", "validation accuracy"), ("validation_loss", "validation loss")):
        lines = [line for record in artifacts.runs.values() if (line := _line(record, key, unit))]
        if not lines:
            continue
        title = f"{name.capitalize()} for the compute spent"
        svg = figures.learning_curves(f"fig-{key.replace('_', '-')}", title, name, label, lines, bool(reference))
        section.figures.append(Figure(title, svg))
    if section.figures:
        section.sentences.append(
            "Points above one place of the horizontal axis compare methods at equal compute; inside a curve, the "
            "learning-rate schedule is unfinished."
        )
        section.tables.append(_rates(artifacts))
    else:
        section.sentences.append("No fine-tune has logged a validation curve yet.")
    return section


def _by_number(name: str) -> list[str | int]:
    """For sorting: ``freeze-8`` comes before ``freeze-15``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _cost_shares(compared: list[Method]) -> Figure:
    kinds = {
        m.name: {"FLOPs": m.cost_share, "training time": m.seconds_share, "peak memory": m.memory_share}
        for m in compared
    }
    known = {name: {k: v for k, v in costs.items() if v is not None} for name, costs in kinds.items()}
    shares = {name: costs for name, costs in known.items() if costs}
    title = "Cost of each method relative to full fine-tuning"
    return Figure(
        title, figures.cost_shares("fig-shares", title, shares), "Time and memory are measured, FLOPs counted."
    )


def _scores(compared: list[Method], plain: Mapping[str, Mapping[str, Interval]], metric: str) -> Table:
    held = [*(method.scores for method in compared), *plain.values()]
    shown = [name for name in SCORES if any(name in scores for scores in held)]
    scores = [SCORES[name][0].upper() + SCORES[name][1:] for name in shown]
    headings = ("Method", *scores, "Against full", "At equal compute")
    rows = [
        [_named(m.name), *(_score(m.scores.get(s)) for s in shown), _gap(m, metric), _equal(m, metric)]
        for m in compared
    ]
    rows += [
        [Cell(BASELINE_NAMES[name], mark="baseline"), *(_score(scores.get(s)) for s in shown), Cell(""), Cell("")]
        for name, scores in plain.items()
    ]
    caption = (
        "Scores on the test split with their intervals; loss in nats per answer token. Against full: the paired "
        f"difference in {SCORES[metric]}, its interval, and the difference that the test detects with 80 % power. "
        "At equal compute: the last validation score and full fine-tuning’s when it had spent as much, read from "
        "an unfinished learning-rate schedule."
    )
    return Table("methods", caption, columns(headings), rows)


def _costs(compared: list[Method]) -> Table:
    rows = [
        [
            _named(m.name),
            number_cell(m.boundary, compact(m.boundary), moved_words(m.before_budget)),
            number_cell(m.trained, parameters(m.trained), percent(m.trained_share)),
            number_cell(m.cost, flops(m.cost), percent(m.cost_share)),
            number_cell(m.seconds, seconds(m.seconds), _time_note(m)),
            number_cell(m.peak_memory, size(m.peak_memory), percent(m.memory_share)),
        ]
        for m in compared
    ]
    headings = ("Method", "Boundary", "Trained", "FLOPs", "Training time", "Peak memory")
    return Table(
        "costs", "Boundaries and costs, and in small print shares of full fine-tuning.", columns(headings), rows
    )


def _gap(method: Method, metric: str) -> Cell:
    gap, detectable = method.differences.get(metric), method.detectable.get(metric)
    if gap is None or method.name == "full":
        return Cell("")
    note = f"{span(gap)}\n80{THIN}% power: {decimal(detectable)}" if detectable is not None else span(gap)
    return number_cell(gap.value, f"{'+' if gap.value > 0 else ''}{decimal(gap.value)}", note)


def _equal(method: Method, metric: str) -> Cell:
    key = "validation_accuracy" if metric == "accuracy" else "validation_loss"
    own, full = method.at_equal_compute.get(key), method.at_equal_compute.get(f"full_{key}")
    return Cell("") if own is None else number_cell(own, decimal(own), f"full, unfinished:\n{decimal(full)}")


def _time_note(method: Method) -> str:
    step = f"{seconds(method.step_seconds)}/step" if method.step_seconds is not None else ""
    return "\n".join(part for part in (percent(method.seconds_share) if method.seconds_share else "", step) if part)


def _method(name: str, record: Mapping[str, Any], here: Mapping[str, Any]) -> Method:
    scores = scores_of(record)
    training, cache = number(here.get("seconds_training")), number(here.get("seconds_cache")) or 0.0
    equal = {key: number(value) for key, value in (record.get("at_equal_compute") or {}).items()}
    return Method(
        name=name,
        scores=scores,
        differences={s: gap for s in scores if (gap := _interval(record, f"{s}_minus_full")) is not None},
        detectable={
            s: found for s in scores if (found := number(record.get(f"{s}_minus_full_detectable"))) is not None
        },
        at_equal_compute={key: value for key, value in equal.items() if value is not None},
        boundary=number(record.get("boundary")),
        before_budget=number(record.get("boundary_before_budget")),
        trained=number(record.get("trained_parameters")),
        trained_share=number(record.get("trained_share")),
        cost=number(record.get("flops")),
        cost_share=number(record.get("flops_share")),
        seconds=None if training is None else training + cache,
        seconds_share=number(here.get("seconds_share")),
        step_seconds=number(here.get("seconds_per_step")),
        peak_memory=number(here.get("peak_memory_bytes")),
        memory_share=number(here.get("peak_memory_share")),
        seeds=len(record.get("seeds") or [None]),
    )


def _measured(artifacts: Artifacts) -> dict[str, dict[str, Any]]:
    """The rows of ``comparison.csv`` by name; it holds measurements of this machine and the scores."""
    if artifacts.comparison is None:
        return {}
    rows = artifacts.comparison.to_dict("records")
    return {str(row["name"]): {str(key): value for key, value in row.items()} for row in rows}


def _line(record: Mapping[str, Any], key: str, unit: float) -> figures.Line | None:
    dots = [(number(p.get("flops")), number(p.get(key))) for p in record.get("curve", [])]
    known = [(cost / unit, value) for cost, value in dots if cost is not None and value is not None]
    return figures.Line(record["method"], [c for c, _ in known], [v for _, v in known]) if known else None


def _rates(artifacts: Artifacts) -> Table:
    headings = ("Run", "Learning rate", "Steps", "Trained", "FLOPs")
    rows = [
        [
            Cell(run),
            number_cell(number(r.get("learning_rate")), f"{r.get('learning_rate'):g}", _place_in_grid(r)),
            number_cell(number(r.get("steps")), count(number(r.get("steps")))),
            number_cell(number(r.get("trained_parameters")), parameters(number(r.get("trained_parameters")))),
            number_cell(number(r.get("flops")), flops(number(r.get("flops")))),
        ]
        for run, r in artifacts.runs.items()
    ]
    caption = "Every fine-tune with the learning rate that won on the validation split."
    return Table("runs", caption, columns(headings), rows)


def _place_in_grid(record: Mapping[str, Any]) -> str:
    """Where the chosen rate is in its grid: at an end, a better rate may be outside."""
    tried = sorted(one["rate"] for one in record.get("grid", []))
    if len(tried) < 2:
        return ""
    ends = {tried[0]: "the lowest tried", tried[-1]: "the highest tried"}
    return ends.get(record["learning_rate"], f"of {len(tried)} tried")


def _seen(compared: list[Method], metric: str) -> str:
    best = [m for m in compared if metric in m.scores]
    pick = min if metric == "loss" else max
    top = pick(best, key=lambda m: m.scores[metric].value)
    cheapest = min((m for m in best if m.cost_share is not None), key=lambda m: m.cost_share or 0.0)
    word = "Lowest" if metric == "loss" else "Highest"
    price = f"{cheapest.name} at {percent(cheapest.cost_share)} of full’s FLOPs"
    gap = top.differences.get(metric)
    unsure = top.name != "full" and gap is not None and gap.includes_zero
    lead = " (not significantly different from full)" if unsure else ""
    return f"{word} {SCORES[metric]}: {top.name}{lead}; cheapest: {price}"


def _interval(record: Mapping[str, Any], name: str) -> Interval | None:
    value, low, high = (number(record.get(name + end)) for end in ("", "_low", "_high"))
    return None if value is None or low is None or high is None else Interval(value, low, high)


def _score(score: Interval | None) -> Cell:
    return number_cell(None, "") if score is None else number_cell(score.value, decimal(score.value), span(score))


def _named(method: str) -> Cell:
    return Cell(method, mark=f"method {variable(method).lstrip('-')}")
