"""What the study found, beside this run: the headline, every rule over all data sets, quality against the boundary."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from salf.errors import UserError
from stages.common.figures.svg import inline
from stages.common.study_schema import SUMMARY_SCHEMA
from stages.report.parts import Cell, Figure, Section, Table, number
from stages.report.wording import decimal, listing, percent

Json = Mapping[str, Any]

_REGRET: Final = (
    "Regret is what a choice loses to the best measured boundary, in points of accuracy. At cost: to the best of equal "
    "or lower cost, deciding included. At any: whatever that one costs. Cross-fitted: the best boundary is found with "
    "other seeds on other test examples than those it is scored on, so that its luck does not count. This section is "
    "not part of the chain: make study measures it."
)
_RULES: Final = (
    "Every selector, mean over datasets: counted FLOPs as a share of full fine-tuning's, and those of the fine-tunes "
    "by which it decides; points worse than full at equal epochs, and on how many datasets; better than full with the "
    "savings spent on more epochs; better than a fixed depth of the same cost, with p-values after Holm's procedure, "
    "on these datasets and over datasets like these; better than the default. Intervals are over test examples and "
    "seeds (salf is the paper's selector)."
)
_REGRETS: Final = (
    "What every selector misses, in points, with the largest of any case, a dataset with a model; interpolated: cases "
    "whose boundary is interpolated between measured ones; Spearman's correlation of what it predicts of the "
    "boundaries with what was measured there."
)
_INTERACTION: Final = (
    "Do datasets differ in how accuracy falls over depth? Mean squares of dataset x boundary, in squared points, "
    "against the noise of seeds and test examples."
)
_HEADROOM: Final = (
    "What a choice that knows each dataset's curve would gain over the fixed depth of the same mean cost, with the "
    "standard error over datasets. Within: the deepest boundary within so many points of full fine-tuning. Trade: the "
    "best accuracy less the cost, full fine-tuning's counted as so many points. Cross-fitted: chosen and scored on "
    "different seeds and test examples; seen: on the same; validation: chosen by validation accuracy."
)
# Figures over all data sets, which come first.
_OVER_ALL: Final = {
    "costs": "What the selectors cost, and what they miss",
    "depth": "What freezing costs, by the share of the layers",
}


def study_section(summary: Json | None, figures: Mapping[str, str]) -> Section | None:
    """The study's headline, tables and figures; ``None`` where no study lies beside the reports.

    Args:
        summary: ``reports/study/summary.json``.
        figures: SVG files of the study by name.

    Raises:
        UserError: another version of the analysis wrote it.
    """
    if summary is None:
        return None
    if summary["schema"] != SUMMARY_SCHEMA:
        raise UserError("reports/study/summary.json: of another version; run: python -m stages.study")
    section = Section("study", "The study", "Is the boundary right? What the study measured")
    section.sentences += [summary["headline"], _scope(summary), _REGRET]
    if summary["leave_one_out"]:
        section.tables.append(_left_out(summary["leave_one_out"]))
    alone = summary["alone"]
    scopes = [("-alone", f"With {alone['model']} alone. ", alone["rules"])] if alone else []
    for name, words, rules in [*scopes, ("", "All models. " if alone else "", summary["rules"])]:
        section.tables.append(_rules(f"study-rules{name}", words + _RULES, rules, summary))
        section.tables.append(_regrets(f"study-regrets{name}", words + _REGRETS, rules, summary))
    if summary["headroom"]:
        section.tables += [_interaction(summary["interaction"]), _headroom(summary)]
    section.tables.append(_sensitivity(summary))
    if summary["coverage"]:
        section.tables.append(_coverage(summary))
    names = sorted(figures, key=lambda name: name not in _OVER_ALL)
    titles = {name: _OVER_ALL.get(name, f"Quality against the boundary: {name}") for name in names}
    section.figures += [Figure(titles[name], inline(figures[name]), "") for name in names]
    return section


def _scope(summary: Json) -> str:
    least, most = (extreme(summary["seeds_each"].values()) for extreme in (min, max))
    seeds = f"{least} to {most} seeds" if least < most else f"{most} {'seeds' if most > 1 else 'seed'}"
    at_an_end = summary["tuned_rates_at_an_end"]
    return (
        f"{summary['fine_tunes']} of {summary['fine_tunes_measured']} fine-tunes of {listing(summary['models'])} "
        f"on {listing(summary['data_sets'])}, "
        f"{seeds}, the same for all boundaries of a data set; measured on {listing(summary['machines'])}. "
        f"{summary['tuned_rates']} learning rates were tuned on validation data, for a region of boundaries or a "
        f"method each; {at_an_end} of them {'lies' if at_an_end == 1 else 'lie'} at an end of what was tried."
    )


def _rules(name: str, caption: str, rules: Json, summary: Json) -> Table:
    headings = (
        *("Selector", "Datasets", "Cost", "Worse than full", "Better at equal compute", "Better than a fixed depth"),
        "Better than the default",
    )
    rows = [
        [
            _name(one, summary),
            number_cell(one["groups"], str(one["groups"])),
            number_cell(one["cost_share"], percent(one["cost_share"]), _deciding(one["deciding_share"])),
            number_cell(one["behind_full"], decimal(one["behind_full"], 2), f"on {one['groups_behind']}"),
            _ahead(one["equal_compute_over_full"]),
            _ahead(one["over_constant"], tested=True),
            _ahead(one["over_default"]),
        ]
        for one in _ranked(rules)
    ]
    return Table(name, caption, headings, rows)


def _regrets(name: str, caption: str, rules: Json, summary: Json) -> Table:
    headings = ("Selector", "Cases", "Regret at cost", "Cross-fitted", "Regret at any", "Cross-fitted", "Rank corr.")
    rows = [
        [
            _name(one, summary),
            number_cell(one["cases"], _of_asked(one), _interpolated(one)),
            _regret(one, "regret_at_cost", "worst_at_cost"),
            _points(one["regret_at_cost_cross_fitted"]),
            _regret(one, "regret", "worst"),
            _points(one["regret_cross_fitted"]),
            number_cell(one["rank_correlation"], decimal(one["rank_correlation"], 2)),
        ]
        for one in _ranked(rules)
    ]
    return Table(name, caption, headings, rows)


def _ranked(rules: Json) -> list[Json]:
    return sorted(rules.values(), key=lambda one: one["rank"])


def _name(one: Json, summary: Json) -> Cell:
    mark = "best" if one["rule"] == summary["default_rule"] else ""
    return Cell(one["rule"], mark=mark, note=f"not counted: {one['degenerate']}" if one["degenerate"] else "")


def _regret(one: Json, mean: str, worst: str) -> Cell:
    """A mean regret, and the largest; ``summary.json`` names the case."""
    return number_cell(one[mean], decimal(one[mean], 2), f"at most {decimal(one[worst], 1)}")


def _ahead(over: Json | None, *, tested: bool = False) -> Cell:
    """A difference with its interval and number of datasets; ``tested``: and both p-values."""
    if over is None:
        return number_cell(None, "")
    low, high = (decimal(over[name], 1) for name in ("low", "high"))
    note = f"{low} to {high}, {over['groups']} {'sets' if over['groups'] > 1 else 'set'}"
    if tested:
        ps = [decimal(over[name], 3) for name in ("p_holm", "p_holm_elsewhere") if over[name] is not None]
        note += f"\np {' and '.join(ps)}"
    return number_cell(over["difference"], decimal(over["difference"], 2), note)


def _interaction(found: Sequence[Json]) -> Table:
    headings = ("Model", "Boundaries", "Datasets", "Observed", "Noise", "Its 95 %", "p", "Beyond noise, points")
    names = ("observed", "noise", "noise_high")
    rows = [
        [
            *(Cell(one["model"]), Cell(one["boundaries"]), number_cell(one["data_sets"], str(one["data_sets"]))),
            *(_points(one[name]) for name in names),
            number_cell(one["p"], decimal(one["p"], 4)),
            _points(one["excess"]),
        ]
        for one in found
    ]
    return Table("study-interaction", _INTERACTION, headings, rows)


def _headroom(summary: Json) -> Table:
    headings = ("Chosen", "Aim", "Cost", "Worse than full", "A fixed depth", "Gain", "Without its best group")
    rows = [
        [
            *(Cell(one["picked_by"]), Cell(one["aim"]), number_cell(one["cost_share"], percent(one["cost_share"]))),
            *(_points(one["behind_full"]), _points(one["fixed_behind_full"])),
            number_cell(one["gain"], decimal(one["gain"], 2), f"± {decimal(one['gain_error'], 2)}"),
            _points(one["least_gain"]),
        ]
        for one in summary["headroom"]
        if one["model"] == summary["leading"] and one["gain_error"] is not None
    ]
    return Table("study-headroom", _HEADROOM, headings, rows)


def _deciding(share: float) -> str:
    return f"and {percent(share)} to decide" if share else ""


def _of_asked(one: Json) -> str:
    return f"{one['cases']} of {one['asked']}" if one["cases"] < one["asked"] else str(one["cases"])


def _interpolated(one: Json) -> str:
    return f"{one['interpolated']} interpolated" if one["interpolated"] else ""


def _sensitivity(summary: Json) -> Table:
    rows = [
        [
            Cell(one["what"]),
            Cell(one["rule"]),
            number_cell(one["groups"], str(one["groups"])),
            number_cell(one["cost_share"], percent(one["cost_share"])),
            number_cell(one["behind_full"], decimal(one["behind_full"], 2), f"on {one['groups_behind']}"),
            *(_points(one[name]) for name in ("regret_at_cost", "worst_at_cost", "regret", "worst")),
        ]
        for one in summary["sensitivity"]
    ]
    headings = (
        "Part",
        "Rule",
        "Data sets",
        "Cost",
        "Behind full",
        "Regret at cost",
        "Most at cost",
        "Regret at any",
        "Most at any",
    )
    caption = (
        "What the verdict hangs on: the rule that other cost caps would choose, and the default on parts of the study."
    )
    return Table("study-sensitivity", caption, headings, rows)


def _left_out(left: Json) -> Table:
    headings = (
        "Left out",
        "Chosen on the others",
        "Regret at cost",
        "Cross-fitted",
        "Regret at any",
        "Cross-fitted",
        "Behind full",
        "Cost",
    )
    rows = [
        [
            Cell(one["group"]),
            Cell(one["rule"]),
            *(_points(one[name]) for name in ("regret_at_cost", "regret_at_cost_cross_fitted")),
            *(_points(one[name]) for name in ("regret", "regret_cross_fitted", "behind_full")),
            number_cell(one["cost_share"], percent(one["cost_share"])),
        ]
        for one in left["groups"]
    ]
    return Table(
        "study-left-out",
        "The rule that all other data sets choose, on the one left out.",
        headings,
        rows,
    )


def _coverage(summary: Json) -> Table:
    rows = [
        [
            Cell(one["source"]),
            number_cell(one["fitted"], f"{one['fitted']} of {one['asked']}", _laws(one["laws"])),
            number_cell(one["places"], str(one["places"]), f"{one['cases']} cases"),
            number_cell(one["covered"], percent(one["covered"])),
            number_cell(one["nominal"], percent(one["nominal"])),
        ]
        for one in summary["coverage"]
    ]
    caption = (
        "On how many cases a law fits at all, which one, and how often the intervals cover what was measured later: "
        "laws against larger traces, pilots (interpolated where their law does not hold) against whole fine-tunes."
    )
    return Table("study-coverage", caption, ("Source", "Fits", "Places", "Covered", "Nominal"), rows)


def _laws(counts: Mapping[str, int]) -> str:
    """Which fit how often: ``power 2, exponential 1``."""
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())


def _points(value: float) -> Cell:
    return number_cell(value, decimal(value, 2))


def number_cell(value: float | None, text: str, note: str = "") -> Cell:
    """A numeric cell with its text."""
    return number(value, lambda _: text, note)
