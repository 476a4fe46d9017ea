"""Quality and cost of the compared methods, learning curves, numbers of training examples, and the arms of races."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final

from scipy.stats import t as student

from salf.cost import update_traffic
from salf.metrics import BASELINES, SCORES, Baseline, Scored
from salf.plan_records import TimedBudget
from salf.records import FineTuneRecord, PreparedRecord, RaceArm
from salf.scale.inputs import Machine, timed
from stages.common.figures import variable
from stages.report.artifacts import SPLITS, Artifacts, Method
from stages.report.figures import curves, quality_cost
from stages.report.parts import Cell, Columns, Section, Table, number, table
from stages.report.wording import (
    THIN,
    compact,
    count,
    decimal,
    flops,
    listing,
    moved_words,
    parameters,
    percent,
    seconds,
    signed,
    size,
    span,
)

_FEW: Final = 10  # test examples of a label; below, resampling them understates how much their scores vary
_SIZE: Final = "data.limits.train"


def quality_section(artifacts: Artifacts) -> Section:
    """Table and figure of quality against cost."""
    section = Section("quality", "Quality and cost", "Quality and cost")
    compared, metric = artifacts.methods, artifacts.metric
    held = artifacts.metrics.baselines if artifacts.metrics else {}
    plain = {words.removeprefix("the "): held[name] for name, words in BASELINES.items() if name in held}
    if not compared:
        words = "No fine-tuned model has been evaluated yet; dvc repro trains and scores the methods of compare."
        section.sentences.append(words)
    section.sentences += label_sentences(artifacts.meta)
    if compared or plain:
        section.tables.append(_scores_table(compared, plain, metric))
    if compared:
        section.tables.append(_costs_table(compared))
    if artifacts.plan.timed:
        section.tables.append(times_table(artifacts, artifacts.plan.timed))
    priced = [m for m in compared if m.record.flops_share is not None]
    if priced:
        lines = {name: baseline.scores[metric] for name, baseline in plain.items() if metric in baseline.scores}
        section.figures.append(quality_cost(metric, priced, lines))
    return section


def few_section(artifacts: Artifacts) -> Section | None:
    """Quality against the number of training examples, by test split; ``None`` without the table of make few-shot."""
    rows = artifacts.few
    if rows is None:
        return None
    score = next(name for name in SCORES if (rows.measure == name).any())
    rows = rows[(rows.measure == score) & ~rows.panel.str.contains(" ")]  # the names of other panels have spaces
    section = Section("few", "Few examples", "How many training examples does it take?")
    section.sentences.append(
        "Means over draws of the training examples, with 95\u202f% intervals (Student’s t; none of a single draw). "
        "This section is not part of the chain: make few-shot measures it, and reports/few-shot.csv has its numbers."
    )
    for split, found in rows.groupby("panel", sort=False):
        means = found.groupby(["model", _SIZE], sort=False).value.agg(["mean", "sem", "count"]).reset_index()
        means["half"] = means["sem"] * student.ppf(0.975, means["count"] - 1)
        models = {str(model): each for model, each in means.groupby("model", sort=False)}
        lines = {model: (model, list(zip(each[_SIZE], each["mean"], strict=True))) for model, each in models.items()}
        errors = {model: each.half.fillna(0.0).tolist() for model, each in models.items()}
        what = f"{SCORES[score][0].upper()}{SCORES[score][1:]} on {split}"
        section.figures.append(curves(f"fig-few-{split}", what, ("training examples", SCORES[score]), lines, errors))
    return section


_CURVES: Final = {  # fields of a curve's points
    "validation_accuracy": "validation accuracy",
    "validation_loss": "validation loss",
    "gradient_norm": "norm of the gradient before clipping",
    "gap": "validation loss less training loss",
    "shift": "shift from the base (KL in nats per answer token)",
}


def curves_section(artifacts: Artifacts) -> Section:
    """Validation accuracy and loss against the compute spent."""
    section = Section("curves", "Learning curves", "Learning curves")
    if not artifacts.runs:
        section.sentences.append("No fine-tune has logged a validation curve yet.")
        return section
    full = max((run.flops for run in artifacts.runs.values() if run.label == "full"), default=0)
    unit, cost = (full, "share of full’s FLOPs") if full else (1e15, "PFLOP spent")
    watched = any(point.shift is not None for run in artifacts.runs.values() for point in run.curve)
    for key, what in _CURVES.items() if watched else islice(_CURVES.items(), 2):  # else scores alone
        lines = {
            name: (run.label, [(p.flops / unit, value) for p in run.curve if (value := getattr(p, key)) is not None])
            for name, run in artifacts.runs.items()
        }
        known = {name: line for name, line in lines.items() if line[1]}
        if known:
            name, title = f"fig-{key.replace('_', '-')}", f"{what.capitalize()} for the compute spent"
            section.figures.append(curves(name, title, (cost, what), known))
    section.sentences.append(
        "Points above one place of the horizontal axis compare methods at equal compute; inside a curve, the "
        "learning-rate schedule is unfinished."
    )
    section.tables.append(_runs_table(artifacts.runs))
    return section


def race_section(artifacts: Artifacts) -> Section | None:
    """A figure of every race; ``None`` where there was none."""
    races = {name: run.race for name, run in artifacts.runs.items() if run.race}
    if not races:
        return None
    section = Section("race", "Race", "Which arm won the race")
    for name, race in races.items():
        dropped = sum(one.fate in ("worse accuracy", "worse loss") for look in race.looks for one in look.standings)
        read = sum(arm.flops_validation for arm in race.arms)
        section.sentences.append(
            f"{name}: {_label(race.arms[race.winner])} won against {len(race.arms) - 1} other arms, of which {dropped} "
            f"were dropped as significantly worse. All arms together cost {flops(race.flops)}: "
            f"{percent(race.flops_before / race.flops)} for the caches, {percent(read / race.flops)} for reading the "
            f"validation split, the rest for steps. The winner’s training alone costs {flops(race.flops_winner)}."
        )
        dots = [[(point.epoch, point.validation_loss) for point in arm.curve] for arm in race.arms]
        lines = {str(at): (_label(race.arms[at]), line) for at, line in enumerate(dots) if line}
        title = f"Validation loss of the arms of {name}"
        caption = "A line per arm, a marker per look; it ends where the arm left the race."
        section.figures.append(curves(f"fig-{name}", title, ("epoch", "validation loss"), lines, caption=caption))
    return section


def _label(arm: RaceArm) -> str:
    return f"{arm.method} {arm.learning_rate:g}"


def label_shares(meta: PreparedRecord, split: str, counts: str = "label_counts") -> dict[str, float]:
    """Each label's share of a split's examples, or of those before its limit; empty where there are no labels."""
    found: Mapping[str, int] = getattr(meta.splits.get(split), counts, {})
    return {one.label: found.get(one.label, 0) / sum(found.values()) for one in meta.labels if found}


def label_sentences(meta: PreparedRecord) -> list[str]:
    """Name the splits that were balanced over the labels, and labels with too few test examples for intervals."""
    shares = {split: found for split in SPLITS if (found := label_shares(meta, split))}
    if not shares:
        return []
    named = {"all": SPLITS, "train": ("train",)}.get(meta.balance or "none", ())
    source = {split: label_shares(meta, split, "source_label_counts") or shares[split] for split in shares}
    balanced = [split for split in shares if split in named and shares[split] != source[split]]
    kept = [split for split in shares if split not in balanced]
    words = f"Balanced over the labels: {listing(balanced) or 'no split'}."
    if kept:
        words += f" The source’s label frequencies remain in {listing(kept)}."
    if "test" in balanced:
        words += " Test scores are therefore those of equal label frequencies, not of the source’s."
    sentences = [words]
    tested = meta.splits["test"].label_counts if "test" in shares else {}
    few = [f"{name} ({tested.get(name, 0)})" for name in shares.get("test", {}) if tested.get(name, 0) < _FEW]
    if few:
        sentences.append(
            f"Fewer than {_FEW} test examples of {', '.join(few)}: their share of the intervals of balanced accuracy "
            "and macro-F1 is too narrow."
        )
    return sentences


def _scores_table(compared: Sequence[Method], plain: Mapping[str, Baseline], metric: str) -> Table:
    methods = {m.name: m for m in compared}
    held: dict[str, Scored] = {**{name: m.record for name, m in methods.items()}, **plain}

    def score(of: str, row: str) -> Cell:
        found = held[row].scores.get(of)
        return number(found.value, decimal, span(found)) if found else number(None)

    columns: Columns[str] = {"Method": lambda row: _named(row) if row in methods else Cell(row, mark="baseline")}
    for one, words in SCORES.items():
        if any(one in row.scores for row in held.values()):
            columns[words[0].upper() + words[1:]] = partial(score, one)
    columns["Against full"] = lambda row: _difference(methods.get(row), metric)
    columns["At equal compute"] = lambda row: _equal(methods.get(row), metric)
    caption = (
        "Scores on the test split with their intervals; loss in nats per answer token. Against full: the paired "
        f"difference in {SCORES[metric]}, its interval, and the difference that the test detects with 80 % power. "
        "At equal compute: the last validation score and full fine-tuning’s when it had spent as much, read from "
        "an unfinished learning-rate schedule."
    )
    others = "Without fine-tuning" if any(map(_group, compared)) else ""
    return table(
        "methods", caption, held, columns, group=lambda row: _group(methods[row]) if row in methods else others
    )


def _group(method: Method) -> str:
    return f"Technique: {method.slot}" if method.slot else ""


def _difference(method: Method | None, metric: str) -> Cell:
    gap = method.record.differences.get(metric) if method and method.name != "full" else None
    return number(gap.value, signed, f"{span(gap)}\n80{THIN}% power: {decimal(gap.detectable)}") if gap else Cell("")


def _equal(method: Method | None, metric: str) -> Cell:
    equal = method.record.at_equal_compute if method else None
    if equal is None:
        return Cell("")
    own, full = equal.validation_loss, equal.full_validation_loss
    if metric == "accuracy":
        own, full = equal.validation_accuracy, equal.full_validation_accuracy
    return Cell("") if own is None else number(own, decimal, f"full, unfinished:\n{decimal(full)}")


def _costs_table(compared: list[Method]) -> Table:
    columns: Columns[Method] = {
        "Method": lambda m: _named(m.name),
        "Boundary": lambda m: number(m.record.boundary, compact, moved_words(m.record.boundary_before_budget)),
        "Trained": lambda m: number(m.record.trained_parameters, parameters, percent(m.record.trained_share)),
        "FLOPs": _flops,
        "Backward": lambda m: number(m.record.flops_backward, flops, percent(m.record.flops_backward_share)),
        "Training time": _time,
        "Peak memory": lambda m: number(m.measured.peak_memory_bytes, size, percent(m.measured.peak_memory_share)),
    }
    caption = "Boundaries and costs, and in small print shares of full fine-tuning."
    return table("costs", caption, compared, columns, group=_group)


def times_table(artifacts: Artifacts, budget: TimedBudget) -> Table:
    """Time and price that the plan's rates predict, and what was measured."""
    machine = timed(budget.rates)

    def predicted(method: Method, factor: float = 1.0) -> float | None:
        runs = [run for run in artifacts.runs.values() if run.label == method.name and run.flops_before is not None]
        return factor * statistics.mean(_predicted_seconds(machine, run) for run in runs) if runs else None

    columns: Columns[Method] = {
        "Method": lambda m: _named(m.name),
        "Predicted": lambda m: number(predicted(m), seconds),
        "Measured": lambda m: number(m.measured.seconds, seconds),
        "Predicted / measured": lambda m: number(predicted(m, 1 / m.measured.seconds), decimal),
    }
    if price := budget.price_per_hour:
        columns["Predicted price"] = lambda m: number(predicted(m, price / 3600), compact)
        columns["Price"] = lambda m: number(m.measured.seconds * price / 3600, compact)
    caption = (
        f"One training at the chosen rate, cached passes included; no validation, loading or saving. plan.budget = "
        f"{budget.budget}. Predicted from the counted FLOPs and the optimizer’s memory traffic at the rates that "
        f"were measured before the plan was made: {machine.words} on {budget.rates.machine['device']}."
    )
    return table("times", caption, artifacts.methods, columns)


def _predicted_seconds(machine: Machine, run: FineTuneRecord) -> float:
    """Seconds of a run's cached passes, steps and updates, from its counted FLOPs, which must say what was cached."""
    before = run.flops_before or 0
    updates = run.steps * run.trained_parameters * update_traffic()
    steps = run.flops - before - run.flops_looks
    return machine.seconds(before, steps, updates, answers_alone=run.how.answer_side)


def _flops(method: Method) -> Cell:
    """Of a race all of it, and in small print the winner's training alone."""
    winner = method.record.flops_winner
    alone = "" if winner is None else f"\nwinner alone: {flops(winner)}"
    return number(method.record.flops, flops, f"{percent(method.record.flops_share)}{alone}")


def _time(method: Method) -> Cell:
    known = method.measured
    share = f"{percent(known.seconds_share)}\n" if known.seconds_share else ""
    return number(known.seconds, seconds, f"{share}{seconds(known.seconds_per_step)}/step")


def _runs_table(runs: Mapping[str, FineTuneRecord]) -> Table:
    columns: Columns[str] = {
        "Run": str,
        "Learning rate": lambda name: number(runs[name].learning_rate, "{:g}".format, place_in_grid(runs[name])),
        "Steps": lambda name: number(runs[name].steps, count),
        "Trained": lambda name: number(runs[name].trained_parameters, parameters),
        "FLOPs": lambda name: number(runs[name].flops, flops),
    }
    if any(run.kept for run in runs.values()):
        columns["Weights"] = lambda name: runs[name].kept_words or "the last weights"
    return table("runs", "Every fine-tune with the learning rate that won on the validation split.", runs, columns)


def place_in_grid(run: FineTuneRecord) -> str:
    """Place of the chosen rate in its grid: at an end, a better rate may be outside."""
    tried = sorted(one.rate for one in run.grid)
    if len(tried) < 2:
        return ""
    ends = {tried[0]: "the lowest tried", tried[-1]: "the highest tried"}
    return ends.get(run.learning_rate, f"of {len(tried)} tried")


def _named(method: str) -> Cell:
    return Cell(method, mark=f"method {variable(method).lstrip('-')}")
