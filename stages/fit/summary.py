"""What the stage prints when it is done: the laws of each quantity, the verdict, the layers of the largest gains."""

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from salf.selectors import OF_THE_POWER_LAW
from stages.fit.compare import choose, faults, verdict
from stages.fit.gains import Gain
from stages.fit.quantity import Analysis
from stages.fit.rules import POWER_RULE
from stages.fit.stability import in_words

_TOP = 3


def show(analysis: Analysis, console: Console) -> None:
    """Print one quantity's summary."""
    best, fits = choose(analysis.assessments)
    table = Table("law", "spaces", "r²", "rmse", "AICc", "left-out layers' rmse", title=analysis.name)
    for each in analysis.assessments:
        name = f"{each.rule.name} {'(fits)' if fits else '(nearest)'}" if each is best else each.rule.name
        spaces = f"{each.first_space}–{len(each.curve)}"
        table.add_row(
            name, spaces, _cell(each.r2, ".3f"), _cell(each.rmse, ".3g"), _cell(each.aicc, ".1f"),
            _cell(each.holdout_rmse, ".3g"),
        )  # fmt: skip
    console.print(table)
    power_fits = any(a.rule is POWER_RULE and not faults(a, analysis.assessments) for a in analysis.assessments)
    console.print(escape(verdict(analysis.name, analysis.assessments, analysis.mean[1:])))
    for gain in analysis.gains:
        doubt = "" if power_fits or gain.name not in OF_THE_POWER_LAW else ", by a law that does not fit"
        console.print(f"  {gain.name:8} gain is largest at {_top(gain)}{doubt}", highlight=False)
    for name, stability in analysis.stabilities.items():
        console.print(f"  {in_words(name, stability)}", highlight=False)
    for note in analysis.notes:
        console.print(f"  note: {escape(note)}", highlight=False)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _top(gain: Gain) -> str:
    """The layers that win most often, then by value."""
    if len(gain.value) < 2 or np.isnan(gain.value[1:]).any():
        return "no layer: undefined here"
    order = np.lexsort((-gain.value[1:], -gain.win_share[1:]))[:_TOP] + 1
    winners = [f"layer {k + 1} ({gain.win_share[k]:.1%})" for k in order if gain.win_share[k] > 0]
    return ", ".join(winners) + " of the resamples"
