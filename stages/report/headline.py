"""The answer in words: what to train, what it saves, what it costs, and how sure that is.

Pure functions of a few numbers, so that the wording of every outcome, the bad ones too, is tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from stages.report.wording import Interval, count, decimal, layer_range, listing, percent, points, span

Standing = Literal["unmeasured", "alone", "open", "better", "level", "worse"]

_BASELINES: Final = {
    "untrained": "the untrained model",
    "majority": "the majority class",
    "tfidf": "TF-IDF + logistic regression",
}


@dataclass(frozen=True)
class Facts:
    """What the headline is made of.

    ``metric`` is ``accuracy``, ``exact match`` or ``loss`` (where lower is better); ``cost`` is the
    share of full fine-tuning's FLOPs, measured where ``partial`` was, else predicted by the plan;
    ``difference`` is partial minus full, with its paired interval where one was computed.
    ``unmeasured_plan`` is the plan's own boundary, where ``boundary`` is that of another method for want
    of one that follows the plan.
    """

    layers: int
    boundary: int
    unmeasured_plan: int | None = None
    metric: str = "accuracy"
    partial: Interval | None = None
    full: Interval | None = None
    difference: Interval | None = None
    cost: float | None = None
    examples: int | None = None
    seeds: int = 1
    baselines: Mapping[str, Interval] = field(default_factory=dict)
    law_fits: bool | None = None
    fallback: str | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the metric is the better one."""
        return self.metric == "loss"


@dataclass(frozen=True)
class Headline:
    """The title, one sentence of verdict, and what a careful reader must know beside it."""

    title: str
    verdict: str
    notes: tuple[str, ...]
    standing: Standing


def headline(facts: Facts) -> Headline:
    """Put the outcome in words."""
    standing = standing_of(facts)
    notes = [*_baseline_notes(facts), *_certainty_notes(facts, standing)]
    return Headline(_title(facts, standing), _verdict(facts, standing), tuple(notes), standing)


def standing_of(facts: Facts) -> Standing:
    """Whether partial fine-tuning is better, worse, or not told apart (``level``) from full fine-tuning.

    ``open``: no interval was computed; ``alone``: full fine-tuning was not run.

    The paired interval of the difference decides where there is one, else the overlap of the two
    intervals, which is the more cautious test.
    """
    if facts.partial is None:
        return "unmeasured"
    if facts.full is None:
        return "alone"
    gap = facts.partial.value - facts.full.value
    if facts.difference is not None and facts.difference.includes_zero is not None:
        clear = not facts.difference.includes_zero
    elif not (facts.partial.bounded and facts.full.bounded):
        return "open"
    else:
        clear = not facts.partial.overlaps(facts.full)
    if not clear:
        return "level"
    return "better" if (gap < 0) == facts.lower_is_better else "worse"


def _title(facts: Facts, standing: Standing) -> str:
    trained = layer_range(facts.boundary + 1, facts.layers)
    if facts.boundary >= facts.layers:
        scope = "Train no layer, only the final norm"
    elif facts.boundary == 0:
        scope = f"Train all {facts.layers} layers"
    elif standing == "worse":
        scope = f"Training only {trained} of {facts.layers} costs {facts.metric}"
    else:
        scope = f"Train {trained} of {facts.layers}"
    return f"{scope}: {_trade(facts)}"


def _trade(facts: Facts) -> str:
    share = f"{percent(facts.cost)} of its compute" if facts.cost is not None else "a compute not counted"
    if facts.partial is None:
        predicted = f"a predicted {percent(facts.cost)} of full fine-tuning’s compute"
        return predicted if facts.cost is not None else "not measured yet"
    if facts.full is None:
        return f"{facts.metric} {decimal(facts.partial.value)}, full fine-tuning not run"
    if facts.lower_is_better or facts.full.value <= 0:
        values = f"{facts.metric} {decimal(facts.partial.value)} against {decimal(facts.full.value)}"
        return f"{values} with full fine-tuning, for {share}"
    return f"{percent(facts.partial.value / facts.full.value)} of full fine-tuning’s {facts.metric} for {share}"


def _verdict(facts: Facts, standing: Standing) -> str:
    if facts.partial is None and facts.full is not None:
        return "No method that freezes layers has been evaluated yet, so what this costs in quality is not known."
    if facts.partial is None:
        return "No fine-tuned model has been evaluated yet, so what this costs in quality is not known."
    measured = f"{facts.metric.capitalize()} {_with_span(facts.partial)}"
    where = f" on {count(facts.examples)} test examples" if facts.examples else ""
    if facts.full is None:
        return f"{measured}{where}. Full fine-tuning was not run, so there is nothing to hold it against."
    beside = f"{measured} against {_with_span(facts.full)} for full fine-tuning{where}"
    gap = _difference(facts)
    return {
        "open": f"{beside}. The difference of {gap} has no interval, so chance cannot be ruled out.",
        "level": f"{beside}. The difference of {gap} cannot be told from chance: {_reach(facts)}.",
        "worse": f"{beside}. The difference of {gap} is larger than chance explains: this saving is paid for.",
        "better": f"{beside}. The difference of {gap} is larger than chance explains: freezing helped here.",
    }[standing]


def _reach(facts: Facts) -> str:
    """How large a loss the data still allow: no difference seen is no proof that there is none."""
    difference = facts.difference
    if difference is None or difference.low is None or difference.high is None:
        return "the two intervals overlap, which does not prove that both are equal"
    worst = difference.high if facts.lower_is_better else -difference.low
    if worst <= 0:
        return "its interval includes zero"
    amount = decimal(worst) if facts.lower_is_better else points(worst).lstrip("+")
    return f"its interval includes zero, but also a loss of up to {amount}"


def _difference(facts: Facts) -> str:
    if facts.partial is None or facts.full is None:
        return ""
    difference = facts.difference or Interval(facts.partial.value - facts.full.value)
    if facts.lower_is_better:
        sign = "+" if difference.value > 0 else ""
        return f"{sign}{decimal(difference.value)} {span(difference)}".strip()
    if difference.low is None or difference.high is None:
        return points(difference.value)
    return f"{points(difference.value)} [{decimal(100 * difference.low, 1)}, {decimal(100 * difference.high, 1)}]"


def _baseline_notes(facts: Facts) -> list[str]:
    if facts.partial is None:
        return []
    clear: list[str] = []
    near: list[str] = []
    behind: list[str] = []
    for name, score in facts.baselines.items():
        ahead = (facts.partial.value < score.value) == facts.lower_is_better and facts.partial.value != score.value
        group = behind if not ahead else near if facts.partial.overlaps(score) else clear
        group.append(f"{_BASELINES.get(name, name)} ({decimal(score.value)})")
    notes = []
    if clear:
        notes.append(f"It is clearly ahead of {listing(clear)}.")
    if near:
        reason = "the intervals overlap" if facts.partial.bounded else "without an interval this may be chance"
        notes.append(f"It is ahead of {listing(near)}, but {reason}.")
    if behind:
        notes.append(f"It is not ahead of {listing(behind)}.")
    return notes


def _certainty_notes(facts: Facts, standing: Standing) -> list[str]:
    notes = []
    if facts.unmeasured_plan is not None:
        notes.append(
            f"These are the results of boundary {facts.boundary}: no method of this run follows the plan’s own, "
            f"{facts.unmeasured_plan}."
        )
    if standing not in ("unmeasured", "alone") and facts.seeds == 1:
        notes.append("One seed: how much the result varies from run to run was not measured.")
    if facts.law_fits is False:
        notes.append("No scaling law fits the trace well; see the law below for what the boundary rests on.")
    if facts.fallback:
        notes.append(f"The plan fell back: {facts.fallback.rstrip('.')}.")
    return notes


def _with_span(interval: Interval) -> str:
    return f"{decimal(interval.value)} {span(interval)}".strip()
