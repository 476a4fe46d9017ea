"""What the verdict hangs on: the default rule on parts of the study, and the rule that other cost caps would choose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from stages.study.judging import Overall, choose, overall
from stages.study.verdicts import Verdict

CAPS: Final = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Part:
    """One rule on some of the cases; see :class:`stages.study.judging.Overall`."""

    what: str
    rule: str
    groups: int
    groups_behind: int
    cost_share: float
    behind_full: float
    regret: float
    regret_at_cost: float
    worst: float
    worst_at_cost: float


def sensitivity(verdicts: Sequence[Verdict], default: str | None) -> list[Part]:
    """Every part of the study that says something of its own, and every cap that some rule keeps.

    Args:
        verdicts: on all cases.
        default: the rule that the study chooses; ``None``: no parts are judged.
    """
    found = [(f"cost cap {cap:.0%}", choose(verdicts, cap), verdicts) for cap in CAPS]
    found += [(what, default, some) for what, some in _parts(verdicts)]
    rows = [(what, _of(some, rule)) for what, rule, some in found if rule]
    return [_part(what, one) for what, one in rows if one]


def _parts(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    counted = [v for v in verdicts if v.unit == "points"]
    models, groups = (list(dict.fromkeys(getattr(v, name) for v in counted)) for name in ("model", "group"))
    if not all(v.above_chance for v in counted):
        yield "full fine-tuning above chance", [v for v in counted if v.above_chance]
    if len(models) > 1:
        yield from ((f"{model} alone", [v for v in counted if v.model == model]) for model in models)
    if len(groups) > 1:
        yield from ((f"without {group}", [v for v in counted if v.group != group]) for group in groups)


def _of(verdicts: Sequence[Verdict], rule: str) -> Overall | None:
    return next((one for one in overall(verdicts) if one.rule == rule), None)


def _part(what: str, one: Overall) -> Part:
    return Part(
        what=what,
        rule=one.rule,
        groups=one.groups,
        groups_behind=one.groups_behind,
        cost_share=one.price,
        behind_full=one.behind_full,
        regret=one.regret,
        regret_at_cost=one.regret_at_cost,
        worst=one.worst,
        worst_at_cost=one.worst_at_cost,
    )
