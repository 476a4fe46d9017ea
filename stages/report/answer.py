"""The answer: what to train, what it saves, what it costs in quality, and how certain that is.

The words are made of :class:`Facts`, a few numbers, so that the wording of every outcome can be tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from salf.methods import SCOPES, method_of
from salf.metrics import BASELINES, LOWER_IS_BETTER, SCORES, Difference, Interval
from stages.report.artifacts import Artifacts, Method
from stages.report.quality import label_shares
from stages.report.wording import THIN, count, decimal, layer_range, listing, percent, signed, span


@dataclass(frozen=True)
class Facts:
    """The facts of the headline.

    Attributes:
        cost: share of full fine-tuning's FLOPs, counted where ``partial`` was measured, otherwise predicted.
    """

    layers: int
    boundary: int  # of the measured method; otherwise the plan's
    unmeasured_plan: int | None = None  # the plan's own boundary, where no method of the run follows it
    answers_alone: bool = False  # the measured method acts after the prompts' data only
    mixed: bool = False  # it is a race, whose winners differ between the seeds: no boundary is that of all
    metric: str = "accuracy"  # a name of ``SCORES``
    partial: Interval | None = None  # the measured method's score
    full: Interval | None = None  # full fine-tuning's score
    difference: Difference | None = None  # partial minus full, paired
    confidence: float | None = None  # of the intervals
    cost: float | None = None
    examples: int | None = None  # in the test split
    over: str = "examples"  # what the intervals resample
    seeds: int = 1
    baselines: Mapping[str, Interval] = field(default_factory=dict)
    frequencies: tuple[float, float] | None = None  # shares of the rarest and the most frequent label in the test split
    other_scores: Mapping[str, Interval] = field(default_factory=dict)  # of the measured method, for uneven labels
    law_fits: bool | None = None
    fallback: str | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the metric is the better one."""
        return self.metric in LOWER_IS_BETTER

    @property
    def standing(self) -> Literal["unmeasured", "alone", "better", "level", "worse"]:
        """Whether the measured method is significantly better or worse than full fine-tuning, by the paired interval.

        ``level``: not significant; ``alone``: full fine-tuning was not run.
        """
        if self.partial is None:
            return "unmeasured"
        if self.difference is None:
            return "alone"
        if self.difference.low <= 0 <= self.difference.high:
            return "level"
        return "better" if (self.difference.value < 0) == self.lower_is_better else "worse"

    def amount(self, value: float, sign: bool = False) -> str:
        """A difference in nats or in perplexity, or in percentage points."""
        write = signed if sign else decimal
        return write(value) if self.lower_is_better else f"{write(100 * value, 1)}{THIN}points"


@dataclass(frozen=True)
class Headline:
    """The title, one sentence of verdict, and what limits it."""

    title: str
    verdict: str
    notes: tuple[str, ...]


def chosen_method(artifacts: Artifacts) -> Method | None:
    """Find the method that follows the plan's selector, else one with its boundary, else ``salf``, else the nearest."""
    plan = artifacts.plan
    compared = {m.name: m for m in artifacts.methods if method_of(m.name).scope not in ("full", *SCOPES)}
    preference = {name: rank for rank, name in enumerate((str(plan.selector), f"{plan.selector}+lora"))}

    def rank(name: str) -> tuple[int, bool, bool, float, bool]:
        method, distance = method_of(name), abs(compared[name].record.boundary - plan.boundary)
        return preference.get(name, 2), distance > 0, method.scope != "salf", distance, bool(method.words)

    return compared[min(compared, key=rank)] if compared else None


def facts_of(artifacts: Artifacts) -> Facts:
    """Gather the facts of the chosen method, compared with full fine-tuning."""
    plan, metrics, metric = artifacts.plan, artifacts.metrics, artifacts.metric
    method = chosen_method(artifacts)
    boundary = round(method.record.boundary) if method else plan.boundary
    measured = {m.record.boundary for m in artifacts.methods}
    runs = [run for run in artifacts.runs.values() if method and run.label == method.name]
    scores = method.record.scores if method else {}
    full = metrics.methods.get("full") if metrics else None
    shares = label_shares(artifacts.meta, "test")
    law = artifacts.law.quantities.get(plan.quantity) if artifacts.law else None
    test, over = artifacts.meta.splits.get("test"), metrics.intervals.over if metrics else "examples"
    return Facts(
        layers=plan.model.layers,
        boundary=boundary,
        unmeasured_plan=plan.boundary if method and plan.boundary not in measured else None,
        answers_alone=any(run.how.answer_side for run in runs),
        mixed=len({(run.boundary, run.method) for run in runs}) > 1,
        metric=metric,
        partial=scores.get(metric),
        full=full.scores[metric] if full else None,
        difference=method.record.differences.get(metric) if method else None,
        confidence=metrics.intervals.confidence if metrics else None,
        cost=method.record.flops_share if method else plan.frontier[boundary].flops_share,
        examples=(test.documents if over == "documents" else test.rows) if test else None,
        over=over,
        seeds=len(method.record.seeds) if method else 1,
        baselines={
            name: found.scores[metric]
            for name, found in (metrics.baselines if metrics else {}).items()
            if metric in found.scores
        },
        frequencies=(min(shares.values()), max(shares.values())) if shares else None,
        other_scores={name: scores[name] for name in ("balanced_accuracy", "macro_f1") if name in scores},
        law_fits=law.fits if law else None,
        fallback=plan.fallback,
    )


def headline(facts: Facts) -> Headline:
    """Put the outcome in words."""
    notes = [*_class_notes(facts), *_baseline_notes(facts), *_certainty_notes(facts)]
    return Headline(_title(facts), _verdict(facts), tuple(notes))


def _title(facts: Facts) -> str:
    if facts.mixed:
        return f"Race with every seed, because the winners differ: {_trade(facts)}"
    if facts.boundary >= facts.layers:
        scope = "Train no layer, only the final norm"
    elif facts.boundary == 0:
        scope = f"Train all {facts.layers} layers"
    else:
        verb = "Training only" if facts.standing == "worse" else "Train"
        scope = f"{verb} {layer_range(facts.boundary + 1, facts.layers)} of {facts.layers}"
    where = ", at answer positions only" if facts.answers_alone else ""
    return f"{scope}{where}: {_trade(facts)}"


def _trade(facts: Facts) -> str:
    metric, standing, gap = SCORES[facts.metric], facts.standing, facts.difference
    if facts.partial is None:
        return f"a predicted {percent(facts.cost)} of full fine-tuning’s compute"
    if gap is None:
        return f"{metric} {decimal(facts.partial.value)}, full fine-tuning not run"
    half = f"±{THIN}{facts.amount((gap.high - gap.low) / 2)}"
    outcome = f"no significant difference ({half}) from full fine-tuning’s {metric}"
    if standing != "level":
        signed_gap = facts.amount(gap.value, sign=True)
        outcome = f"significantly {standing} than full fine-tuning’s {metric} ({signed_gap} {half})"
    return f"{outcome}, for {percent(facts.cost)} of its compute"


def _verdict(facts: Facts) -> str:
    if facts.partial is None:
        what = "fine-tuned model" if facts.full is None else "method that freezes layers"
        return f"No {what} has been evaluated yet, so what this costs in quality is not known."
    metric = SCORES[facts.metric]
    measured = f"{metric[0].upper()}{metric[1:]} {_with_span(facts.partial)}"
    where = f" on {count(facts.examples)} test {facts.over}" if facts.examples else ""
    gap = facts.difference
    if facts.full is None or gap is None:
        return f"{measured}{where}. Full fine-tuning was not run, so there is nothing to compare with."
    scale, digits = (1, 3) if facts.lower_is_better else (100, 1)
    ends = span(Interval(value=0, low=scale * gap.low, high=scale * gap.high), digits)
    seeds = "This holds for this test set and one seed: how much the result varies between seeds was not measured."
    if facts.seeds > 1:
        seeds = f"This holds for this test set and the mean of these {facts.seeds} seeds, not for other data."
    power = f"The test would detect a difference of {facts.amount(gap.detectable)} with 80{THIN}% power."
    if gap.detectable == 0:
        power = "The difference is the same on every example, so resampling them does not say what it would detect."
    return (
        f"{measured} against {_with_span(facts.full)} for full fine-tuning{where}. The difference of "
        f"{facts.amount(gap.value, sign=True)} {ends} is {'not ' if facts.standing == 'level' else ''}significant "
        f"(paired bootstrap over the test {facts.over}, {percent(facts.confidence)} interval){_reach(facts, gap)}. "
        f"{power} {seeds}"
    )


def _reach(facts: Facts, gap: Interval) -> str:
    """The largest loss that the interval still allows: no significant difference is no proof of equality."""
    worst = gap.high if facts.lower_is_better else -gap.low
    if facts.standing != "level" or worst <= 0:
        return ""
    return f": its interval still allows a loss of up to {facts.amount(worst)}"


def _class_notes(facts: Facts) -> list[str]:
    if facts.partial is None or facts.frequencies is None or facts.frequencies[0] == facts.frequencies[1]:
        return []
    majority = facts.baselines.get("majority")
    scores = {facts.metric: facts.partial, **facts.other_scores}
    known = [f"{SCORES[name]} {_with_span(score)}" for name, score in scores.items()]
    known += [f"{SCORES[facts.metric]} of the majority class {decimal(majority.value)}"] if majority else []
    rare, common = (percent(share, 1) for share in facts.frequencies)
    return [f"The test split’s labels are uneven, from {rare} to {common} of the examples: {listing(known)}."]


def _baseline_notes(facts: Facts) -> list[str]:
    """Baselines that the method does not beat, or whose interval overlaps its own."""
    if facts.partial is None:
        return []
    sign = -1 if facts.lower_is_better else 1
    close = [
        f"{words} ({decimal(score.value)})"
        for name, words in BASELINES.items()
        if (score := facts.baselines.get(name))
        and (sign * facts.partial.value <= sign * score.value or facts.partial.overlaps(score))
    ]
    return [f"It is not better than {listing(close)}, or the intervals overlap."] if close else []


def _certainty_notes(facts: Facts) -> list[str]:
    notes = []
    if facts.unmeasured_plan is not None and not facts.mixed:
        notes.append(
            f"These are the results of boundary {facts.boundary}: no method of this run follows the plan’s own, "
            f"{facts.unmeasured_plan}."
        )
    if facts.law_fits is False:
        notes.append("No scaling law fits the trace well; see the law below for what the boundary rests on.")
    return notes + ([f"The plan fell back: {facts.fallback.rstrip('.')}."] if facts.fallback else [])


def _with_span(interval: Interval) -> str:
    return f"{decimal(interval.value)} {span(interval)}"
