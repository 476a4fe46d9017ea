"""The answer in words: what to train, what it saves, what it costs, and how sure that is.

Pure functions of a few numbers, so that the wording of every outcome, the bad ones too, is tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from stages.report.wording import THIN, Interval, count, decimal, layer_range, listing, percent, span

Standing = Literal["unmeasured", "alone", "better", "level", "worse"]

BASELINES: Final = {
    "untrained": "the untrained model",
    "majority": "the majority class",
    "tfidf": "TF-IDF + logistic regression",
}


@dataclass(frozen=True)
class Facts:
    """What the headline is made of.

    Attributes:
        boundary: of the measured method; else the plan's.
        unmeasured_plan: the plan's own boundary, where no method of the run follows it.
        metric: ``accuracy``, ``exact match`` or ``loss`` (lower is better).
        partial: the measured method's score.
        full: full fine-tuning's score.
        difference: partial minus full, with its paired interval.
        detectable: the difference that the paired test finds with 80 % power.
        confidence: of the intervals.
        cost: share of full fine-tuning's FLOPs, counted where ``partial`` was measured, else predicted by the plan.
        examples: in the test split.
        frequencies: shares of the rarest and the most frequent label in the test split.
        other_scores: of the measured method by plain name, for uneven labels.
    """

    layers: int
    boundary: int
    unmeasured_plan: int | None = None
    metric: str = "accuracy"
    partial: Interval | None = None
    full: Interval | None = None
    difference: Interval | None = None
    detectable: float | None = None
    confidence: float | None = None
    cost: float | None = None
    examples: int | None = None
    seeds: int = 1
    baselines: Mapping[str, Interval] = field(default_factory=dict)
    frequencies: tuple[float, float] | None = None
    other_scores: Mapping[str, Interval] = field(default_factory=dict)
    law_fits: bool | None = None
    fallback: str | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the metric is the better one."""
        return self.metric == "loss"


@dataclass(frozen=True)
class Headline:
    """The title, one sentence of verdict, and what limits it."""

    title: str
    verdict: str
    notes: tuple[str, ...]
    standing: Standing


def headline(facts: Facts) -> Headline:
    """Put the outcome in words."""
    standing = standing_of(facts)
    notes = [*_class_notes(facts), *_baseline_notes(facts), *_certainty_notes(facts)]
    return Headline(_title(facts, standing), _verdict(facts, standing), tuple(notes), standing)


def standing_of(facts: Facts) -> Standing:
    """Whether partial fine-tuning is significantly better or worse than full fine-tuning, by the paired interval.

    ``level``: not significant; ``alone``: full fine-tuning was not run.
    """
    if facts.partial is None:
        return "unmeasured"
    if facts.difference is None:
        return "alone"
    if facts.difference.includes_zero:
        return "level"
    return "better" if (facts.difference.value < 0) == facts.lower_is_better else "worse"


def _title(facts: Facts, standing: Standing) -> str:
    if facts.boundary >= facts.layers:
        scope = "Train no layer, only the final norm"
    elif facts.boundary == 0:
        scope = f"Train all {facts.layers} layers"
    else:
        verb = "Training only" if standing == "worse" else "Train"
        scope = f"{verb} {layer_range(facts.boundary + 1, facts.layers)} of {facts.layers}"
    return f"{scope}: {_trade(facts, standing)}"


def _trade(facts: Facts, standing: Standing) -> str:
    if facts.partial is None:
        return f"a predicted {percent(facts.cost)} of full fine-tuning’s compute"
    if facts.difference is None:
        return f"{facts.metric} {decimal(facts.partial.value)}, full fine-tuning not run"
    half = f"±{THIN}{_amount(facts, (facts.difference.high - facts.difference.low) / 2)}"
    outcome = f"no significant difference ({half}) from full fine-tuning’s {facts.metric}"
    if standing != "level":
        gap = _amount(facts, facts.difference.value, signed=True)
        outcome = f"significantly {standing} than full fine-tuning’s {facts.metric} ({gap} {half})"
    return f"{outcome}, for {percent(facts.cost)} of its compute"


def _verdict(facts: Facts, standing: Standing) -> str:
    if facts.partial is None:
        what = "fine-tuned model" if facts.full is None else "method that freezes layers"
        return f"No {what} has been evaluated yet, so what this costs in quality is not known."
    measured = f"{facts.metric.capitalize()} {_with_span(facts.partial)}"
    where = f" on {count(facts.examples)} test examples" if facts.examples else ""
    if facts.full is None or facts.difference is None:
        return f"{measured}{where}. Full fine-tuning was not run, so there is nothing to compare with."
    test = f"paired bootstrap over the test examples, {percent(facts.confidence)} interval"
    power = f" The test would detect a difference of {_amount(facts, facts.detectable)} with 80{THIN}% power."
    return (
        f"{measured} against {_with_span(facts.full)} for full fine-tuning{where}. The difference of "
        f"{_difference(facts, facts.difference)} is {'not ' if standing == 'level' else ''}significant ({test})"
        f"{_reach(facts, facts.difference) if standing == 'level' else ''}."
        f"{power if facts.detectable else ''} {_scope(facts)}"
    )


def _reach(facts: Facts, difference: Interval) -> str:
    """How large a loss the data still allow: no significant difference is no proof of equality."""
    worst = difference.high if facts.lower_is_better else -difference.low
    return f": its interval still allows a loss of up to {_amount(facts, worst)}" if worst > 0 else ""


def _scope(facts: Facts) -> str:
    if facts.seeds == 1:
        return "This holds for this test set and one seed: how much the result varies between seeds was not measured."
    return f"This holds for this test set and the mean of these {facts.seeds} seeds, not for other data."


def _difference(facts: Facts, difference: Interval) -> str:
    scale, digits = (1, 3) if facts.lower_is_better else (100, 1)
    ends = Interval(*(scale * end for end in (difference.value, difference.low, difference.high)))
    return f"{_amount(facts, difference.value, signed=True)} {span(ends, digits)}"


def _amount(facts: Facts, value: float | None, signed: bool = False) -> str:
    """A loss in nats, or a share in percentage points."""
    sign = "+" if signed and value is not None and value > 0 else ""
    if facts.lower_is_better or value is None:
        return f"{sign}{decimal(value)}"
    return f"{sign}{decimal(100 * value, 1)}{THIN}points"


def _class_notes(facts: Facts) -> list[str]:
    if facts.partial is None or facts.frequencies is None or facts.frequencies[0] == facts.frequencies[1]:
        return []
    majority = facts.baselines.get("majority")
    scores = {facts.metric: facts.partial, **facts.other_scores}
    known = [f"{name} {_with_span(score)}" for name, score in scores.items()]
    known += [f"{facts.metric} of the majority class {decimal(majority.value)}"] if majority else []
    rare, common = (percent(share, 1) for share in facts.frequencies)
    return [f"The test split’s labels are uneven, from {rare} to {common} of the examples: {listing(known)}."]


def _baseline_notes(facts: Facts) -> list[str]:
    if facts.partial is None:
        return []
    apart: list[str] = []
    near: list[str] = []
    above: list[str] = []
    for name, score in facts.baselines.items():
        better = (facts.partial.value < score.value) == facts.lower_is_better and facts.partial.value != score.value
        group = above if not better else near if facts.partial.overlaps(score) else apart
        group.append(f"{BASELINES[name]} ({decimal(score.value)})")
    return [
        sentence.format(listing(names))
        for sentence, names in (
            ("It is better than {}: the intervals do not overlap.", apart),
            ("It is better than {}, but the intervals overlap.", near),
            ("It is not better than {}.", above),
        )
        if names
    ]


def _certainty_notes(facts: Facts) -> list[str]:
    notes = []
    if facts.unmeasured_plan is not None:
        notes.append(
            f"These are the results of boundary {facts.boundary}: no method of this run follows the plan’s own, "
            f"{facts.unmeasured_plan}."
        )
    if facts.law_fits is False:
        notes.append("No scaling law fits the trace well; see the law below for what the boundary rests on.")
    if facts.fallback:
        notes.append(f"The plan fell back: {facts.fallback.rstrip('.')}.")
    return notes


def _with_span(interval: Interval) -> str:
    return f"{decimal(interval.value)} {span(interval)}"
