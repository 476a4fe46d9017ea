"""What the verdict depends on: the default rule on parts of the study, and the rule chosen under other cost caps."""

from collections.abc import Iterator, Sequence
from typing import Final

from stages.study.judging import Overall, choose, overall
from stages.study.verdicts import Verdict

CAPS: Final = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def sensitivity(verdicts: Sequence[Verdict], default: str | None) -> list[tuple[str, Overall]]:
    """A rule on some of the cases, and in words on which: every part of the study, and every cap that some rule keeps.

    Args:
        verdicts: on all cases.
        default: the rule that the study chooses; ``None``: no parts are judged.
    """
    asked = [(f"cost cap {cap:.0%}", choose(verdicts, cap), verdicts) for cap in CAPS]
    asked += [(what, default, some) for what, some in _parts(verdicts)]
    found = [(what, rule, overall(some)) for what, rule, some in asked if rule]
    return [(what, one) for what, rule, rules in found for one in rules if one.rule == rule]


def _parts(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    counted = [v for v in verdicts if v.unit == "points"]
    models, groups = (list(dict.fromkeys(getattr(v, name) for v in counted)) for name in ("model", "group"))
    if not all(v.above_chance for v in counted):
        yield "full fine-tuning above chance", [v for v in counted if v.above_chance]
    if len(models) > 1:
        yield from ((f"{model} alone", [v for v in counted if v.model == model]) for model in models)
    if len(groups) > 1:
        yield from ((f"without {group}", [v for v in counted if v.group != group]) for group in groups)
