"""Quality and cost of the compared methods, and the learning curves behind them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from stages.common.figures.palette import variable
from stages.report import figures
from stages.report.artifacts_in import Artifacts
from stages.report.tables import Cell, Column, Figure, Section, Table, number_cell
from stages.report.wording import Interval, count, decimal, flops, number, parameters, percent, seconds, size, span

BASELINE_NAMES: Final = {
    "untrained": "untrained model",
    "majority": "majority class",
    "tfidf": "TF-IDF + logistic regression",
}
_NO_RUNS: Final = "No fine-tuned model has been evaluated yet; dvc repro trains and scores the methods of compare."


@dataclass(frozen=True)
class Method:
    """A compared method over its seeds: mean scores, cost, and what was measured on the machine.

    Shares are of full fine-tuning. ``seconds`` is the whole training, the boundary's cache included;
    ``peak_memory`` is in bytes; ``at_equal_compute`` holds the method's last validation scores and,
    prefixed with ``full_``, those of full fine-tuning when it had spent as much.
    """

    name: str
    scores: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    at_equal_compute: Mapping[str, float]
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
    names = ("accuracy", "macro_f1", "loss", "exact_match")
    scores = {name: _interval(record, name) for name in names}
    return {name: score for name, score in scores.items() if score is not None}


def plain_name(metric: str) -> str:
    """A metric as a reader calls it: ``exact match``, ``macro-F1``."""
    return {"exact_match": "exact match", "macro_f1": "macro-F1"}.get(metric, metric)


def quality_section(artifacts: Artifacts, metric: str) -> Section:
    """Table and figure of quality against cost."""
    section = Section("quality", "Quality and cost", "Quality and cost")
    compared, plain = methods(artifacts), baselines(artifacts)
    if not compared:
        section.sentences.append(_NO_RUNS)
    if compared or plain:
        section.tables.append(_table(compared, plain, metric))
    points = [
        figures.Point(m.name, m.cost_share, m.scores[metric])
        for m in compared
        if m.cost_share is not None and metric in m.scores
    ]
    if points:
        lines = {BASELINE_NAMES[name]: scores[metric].value for name, scores in plain.items() if metric in scores}
        title = _seen(compared, metric)
        svg = figures.quality_cost("fig-quality", title, f"test {plain_name(metric)}", points, lines)
        caption = "Vertical strokes: interval over the test examples. Dashed lines: baselines without fine-tuning."
        section.figures.append(Figure(title, svg, caption))
        section.figures.append(_costs(compared))
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
            "Read upwards at one place of the horizontal axis to compare methods at equal compute."
        )
        section.tables.append(_rates(artifacts))
    else:
        section.sentences.append("No fine-tune has logged a validation curve yet.")
    return section


def _by_number(name: str) -> list[str | int]:
    """For sorting: ``freeze-8`` comes before ``freeze-15``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _costs(compared: list[Method]) -> Figure:
    kinds = {
        m.name: {"FLOPs": m.cost_share, "training time": m.seconds_share, "peak memory": m.memory_share}
        for m in compared
    }
    known = {name: {k: v for k, v in costs.items() if v is not None} for name, costs in kinds.items()}
    shares = {name: costs for name, costs in known.items() if costs}
    title = "What each method costs beside full fine-tuning"
    return Figure(
        title, figures.cost_shares("fig-shares", title, shares), "Time and memory are measured, FLOPs counted."
    )


def _table(compared: list[Method], plain: Mapping[str, Mapping[str, Interval]], metric: str) -> Table:
    shown = [name for name in ("accuracy", "exact_match", "macro_f1", "loss") if _any_has(compared, plain, name)]
    headings = {"accuracy": "Accuracy", "exact_match": "Exact match", "macro_f1": "Macro-F1", "loss": "Loss (nats)"}
    columns = [Column("Method", numeric=False), *(Column(headings[name]) for name in shown)]
    cost = ("Against full", "At equal compute", "Trained", "FLOPs", "Training time", "Peak memory")
    columns += [Column(heading) for heading in cost]
    rows = [[_named(m.name), *(_score(m.scores.get(s)) for s in shown), *_cost_cells(m, metric)] for m in compared]
    absent = [number_cell(None, "")] * len(cost)
    rows += [
        [Cell(BASELINE_NAMES[name], mark="baseline"), *(_score(scores.get(s)) for s in shown), *absent]
        for name, scores in plain.items()
    ]
    caption = (
        "Scores on the test split with their intervals; costs, and in small print their shares of full fine-tuning. "
        "At equal compute: the last validation score and, in small print, full fine-tuning’s when it had spent as much."
    )
    return Table("methods", caption, columns, rows)


def _cost_cells(method: Method, metric: str) -> list[Cell]:
    gap = method.differences.get(metric)
    sign = "+" if gap and gap.value > 0 else ""
    return [
        number_cell(gap.value if gap else None, f"{sign}{decimal(gap.value)}" if gap else "", span(gap)),
        _equal_cell(method, metric),
        number_cell(method.trained, parameters(method.trained), percent(method.trained_share)),
        number_cell(method.cost, flops(method.cost), percent(method.cost_share)),
        number_cell(method.seconds, seconds(method.seconds), _time_note(method)),
        number_cell(method.peak_memory, size(method.peak_memory), percent(method.memory_share)),
    ]


def _equal_cell(method: Method, metric: str) -> Cell:
    key = "validation_accuracy" if metric == "accuracy" else "validation_loss"
    own, full = method.at_equal_compute.get(key), method.at_equal_compute.get(f"full_{key}")
    return number_cell(own, decimal(own), f"full: {decimal(full)}")


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
        at_equal_compute={key: value for key, value in equal.items() if value is not None},
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
    """The rows of ``comparison.csv`` by name; it holds what was measured beside the scores."""
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
    columns = [Column(h, numeric=i > 0) for i, h in enumerate(headings)]
    return Table("runs", "Every fine-tune with the learning rate that won on the validation split.", columns, rows)


def _place_in_grid(record: Mapping[str, Any]) -> str:
    """Where the rate that won lies among those tried: beyond an end of the grid a better one may lie."""
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
    lead = " (not surely ahead of full)" if unsure else ""
    return f"{word} {plain_name(metric)}: {top.name}{lead}; cheapest: {price}"


def _interval(record: Mapping[str, Any], name: str) -> Interval | None:
    value = number(record.get(name))
    if value is None:
        return None
    return Interval(value, number(record.get(f"{name}_low")), number(record.get(f"{name}_high")))


def _score(score: Interval | None) -> Cell:
    return number_cell(None, "") if score is None else number_cell(score.value, decimal(score.value), span(score))


def _named(method: str) -> Cell:
    return Cell(method, mark=f"method {variable(method).lstrip('-')}")


def _any_has(compared: list[Method], plain: Mapping[str, Mapping[str, Interval]], name: str) -> bool:
    return any(name in m.scores for m in compared) or any(name in scores for scores in plain.values())
