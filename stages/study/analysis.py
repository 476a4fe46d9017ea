"""The analysis of a study's tables: ``summary.json``, tables, figures, and the pages that show them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from salf.files import replacing_folder, rounded, write_json, write_text
from stages.study import figures, shown
from stages.study.comparisons import by_depth, compared, over_constant, significant
from stages.study.description import FULL
from stages.study.headroom import headroom, interactions
from stages.study.measured import PAPER, Case, Study
from stages.study.reading import read_study
from stages.study.readings import READ, read
from stages.study.resamples import CONFIDENCE, Resamples, interval
from stages.study.tables import read_traces, records
from stages.study.verdicts import ORACLE, Drawn, choose, degenerate, leave_one_out, overall, verdicts

Json = dict[str, Any]
_ENDS: Final = {"": "on these datasets", "_elsewhere": "over datasets like these"}


class Scope(NamedTuple):
    """The study, or its part of one model: each selector over its cases, and comparisons, indexed by selector.

    ``degenerate``: selectors that cannot show what looking at data or model is worth, and why.
    """

    named: str
    rules: pd.DataFrame
    over: dict[str, pd.DataFrame]
    degenerate: dict[str, str]


def analyse(folder: Path, page: Path | None, cost_cap: float, resamples: int) -> str:
    """Write the analysis into a study's folder, update a page, and return the headline."""
    study = read_study(folder)
    drawn = {case.key: Resamples(case, resamples) for case in study.cases}
    table = verdicts(drawn)
    summary = summarise(study, table, drawn, cost_cap)
    fixed = {rule: one["over_constant"] or {} for rule, one in summary["rules"].items()}
    for p in ("p_holm", "p_holm_elsewhere"):
        table[f"fixed_{p}"] = table["rule"].map({rule: one.get(p) for rule, one in fixed.items()})
    if readings := read(study, read_traces(folder), cost_cap, resamples):
        summary["readings"] = rounded(readings.summary)
        summary["headline"] += " " + by_law(readings.summary)
    tables = {
        "table": table,
        "curves": pd.DataFrame([point for one in drawn.values() for point in _curve(one)]),
        **{name: pd.DataFrame(summary[name]) for name in ("headroom", "interaction")},
        **({"readings": readings.table, "balance": readings.balance} if readings else {}),
    }
    for name, one in tables.items():
        write_text(folder / f"{name}.csv", one.to_csv(index=False))
    write_json(folder / "summary.json", summary)
    found = shown.page(summary, tables["curves"])
    found.write(folder)
    if page:
        shown.update(page, found)
    _draw(folder / "figures", table, drawn, [rule for rule in (summary["default_rule"], PAPER) if rule])
    if readings:
        mine = readings.balance.query("model == @summary['leading'] and unit == 'points'")
        write_text(folder / "figures/balance.svg", figures.balance(mine, summary["leading"]))
    return str(summary["headline"])


def summarise(study: Study, table: pd.DataFrame, drawn: Drawn, cost_cap: float) -> Json:
    """Return ``summary.json``; see :func:`analyse` for the arguments."""
    default, left = choose(table, cost_cap), leave_one_out(table, cost_cap)
    models = table.loc[(table["unit"] == "points") & (table["rule"] == ORACLE), "model"].value_counts(sort=False)
    leading = str(models.idxmax()) if len(models) else study.cases[0].model
    mine = [case for case in study.cases if case.model == leading]

    def scope(named: str, part: pd.DataFrame) -> Scope:
        over = {"over_full": compared(part, drawn, FULL), "over_constant": over_constant(part, drawn)}
        over["equal_compute_over_full"] = compared(part, drawn, FULL, "compute")
        return Scope(named, overall(part), over, degenerate(part, leading))

    alone = scope(f"the {leading} model", table[table["model"] == leading])
    every = scope(f"all {len(models)} models", table) if len(models) > 1 else alone
    scopes = [alone, every] if len(models) > 1 else [alone]
    found = [finding(one, default) for one in scopes] if default else []
    half = f"freeze-{mine[0].layers // 2}"
    summary: Json = rounded(
        {
            "headline": " ".join(found) or "No selector was measured on every dataset within the cost cap.",
            "default_rule": default,
            "default_selector": next(iter(table.loc[table["rule"] == default, "selector"]), None),
            **_identity(study),
            "leave_one_out": records(left),
            "rules": _rules(every),
            "alone": {"model": leading, "rules": _rules(alone)} if len(models) > 1 else None,
            "leading": leading,
            "interaction": records(interactions(study.cases)),
            "headroom": records(headroom(study.cases)),
            "natural": _natural(mine, half),
            "equal_rates": records(at_equal_rates(study, leading, half)),
            "cost_cap": cost_cap,
            "confidence": CONFIDENCE,
        }
    )
    return summary


def finding(scope: Scope, default: str) -> str:
    """Return in words what the default, the paper's selector, and looking at data come to."""
    rules = {row["rule"]: row for row in records(scope.rules.reset_index(names="rule"))}
    over = {row["rule"]: row for row in records(scope.over["over_full"])}.get(default)
    one = rules[default]
    text = (
        f"With {scope.named}, {default} costs {one['cost_share'] + one['deciding_share']:.0%} of full fine-tuning's "
        f"FLOPs and is {_worse(one['behind_full'])} (mean over {one['groups']} datasets; worse on "
        f"{one['groups_behind']})."
    )
    if over:
        ends = {end: where for end, where in _ENDS.items() if over[f"low{end}"] is not None}
        bounds = [f"{over[f'low{end}']:+.2f} to {over[f'high{end}']:+.2f} {where}" for end, where in ends.items()]
        bounds = [each.replace("-", "\N{MINUS SIGN}") for each in bounds]
        text += f" Above full fine-tuning: {' and '.join(bounds)} ({CONFIDENCE:.0%} intervals)."
    if PAPER in rules and default != PAPER:
        paper = rules[PAPER]
        text += (
            f" The paper's selector, {PAPER}, costs {paper['cost_share']:.0%} and is {_worse(paper['behind_full'])}."
        )
    looking = scope.over["over_constant"].drop(list(scope.degenerate), errors="ignore")
    if len(looking):
        counts = [(significant(looking, end) == sign).sum() for sign in (1, -1) for end in _ENDS]
        text += (
            " Of {} selectors that look at the data or the model, {} on these datasets and {} over datasets like these "
            "are significantly better than a fixed depth of the same cost; {} and {} are significantly worse (Holm's "
            "procedure, at {:.0%})."
        ).format(len(looking), *counts, 1 - CONFIDENCE)
    return text


def by_law(found: Json) -> str:
    """Return what the paper's selector comes to with the leading model, observed and by the law, and each claim."""
    leading, rows = list(found["scopes"].items())[-1]
    rules, said = {one["rule"]: one for one in rows}, dict[str, list[str]]()
    parts = [
        f"by {words} it costs {rules[name]['cost_share']:.0%} and is {_worse(rules[name]['behind_full'])}"
        for name, words in READ.items()
        if name in rules
    ]
    for one in found["claims"]:
        if one["models"] in (leading, None):
            said.setdefault(one["claim"], []).append(one["verdict"] + f" ({one['reading']})" * bool(one["models"]))
    claims = " ".join(f"{claim.capitalize()}: {', '.join(verdict)}." for claim, verdict in said.items())
    return (
        f"Readings of the paper's selector with {leading} (in the study, salf is the observed deviation, the default "
        f"of release 0.1.0): {'; '.join(parts)}. Claims of the abstract. {claims}"
    )


def _worse(points: float) -> str:
    points = round(points, 2)
    return f"{abs(points):.2f} points {'worse' if points >= 0 else 'better'}"


def at_equal_rates(study: Study, model: str, half: str) -> pd.DataFrame:
    """Return full fine-tuning and half at every learning rate at which both were trained with the same seeds."""
    key = ["data_set", "learning_rate", "seed"]
    lost = study.rates[study.rates["point"].isin(study.runs["point"])].assign(kept=False)
    won = study.runs.rename(columns={"quality": "test_accuracy"}).assign(kept=True)
    known = (pd.concat([won, lost], join="inner") if len(lost) else won).query("budget == 'epochs'")
    known = known[known["model"] == model].dropna(subset=["test_accuracy", "validation_accuracy"])
    full, other = (known[known["method"] == method].drop_duplicates(key) for method in (FULL, half))
    grouped = full.merge(other, on=key, suffixes=("_full", "_half")).groupby(["data_set", "learning_rate"])
    values = [f"{split}_accuracy_{side}" for split in ("test", "validation") for side in ("full", "half")]
    found = (100 * grouped[values].mean()).assign(seeds=grouped.size())
    kept = grouped[["kept_full", "kept_half"]].any()
    found["kept"] = kept["kept_full"].map({True: "full", False: ""}) + kept["kept_half"].map({True: "half", False: ""})
    return found.replace({"kept": {"fullhalf": "both"}}).reset_index()


def _rules(scope: Scope) -> Json:
    """By selector, with its ``rank``, because a JSON object has no order; null where it was not compared."""
    over = {name: {row["rule"]: row for row in records(one)} for name, one in scope.over.items()}
    found = {}
    for rank, one in enumerate(records(scope.rules.drop(columns="price").reset_index())):
        compared_with = {name: rows.get(one["rule"]) for name, rows in over.items()}
        more = {"degenerate": scope.degenerate.get(one["rule"]), "rank": rank}
        found[one["rule"]] = {**one, **compared_with, **more}
    return found


def _curve(resamples: Resamples) -> list[Json]:
    """Every measured boundary of a case at equal epochs: a row of ``curves.csv``."""
    case, rows = resamples.case, []
    for boundary, method in case.curve().items():
        seeds = case.common_seeds(method, FULL, "compute")
        low, high = interval(resamples.quality(method))
        row: Json = {"data_set": case.data_set, "model": case.model, "boundary": boundary, "layers": case.layers}
        row |= {"cost_share": case.cost_share(method), "unit": case.unit, "quality": case.quality(method)}
        row |= {"low": low, "high": high, "natural": case.natural_quality(method)}
        row["seeds"] = len(case.runs[method, "epochs"].seeds)
        row["longer"] = case.quality(method, "compute", seeds) if seeds else None
        row["longer_full"] = case.quality(FULL, "epochs", seeds) if seeds else None
        rows.append(rounded(row))
    return rows


def _draw(folder: Path, table: pd.DataFrame, drawn: Drawn, leading: Sequence[str]) -> None:
    with replacing_folder(folder) as aside:
        for (data_set, model), one in drawn.items():
            mine = table[(table["data_set"] == data_set) & (table["model"] == model)]
            write_text(aside / f"{data_set}-{model}.svg", figures.curve(one, mine, leading))
        if depth := by_depth(list(drawn.values())):
            write_text(aside / "depth.svg", figures.lost(depth))


def _identity(study: Study) -> Json:
    """The scope of the study: models, data, machines, and the number of tuned learning rates."""
    runs, cases = study.runs, study.cases
    grids = [[float(rate) for rate in rates.split()] for rates in runs["rates"]]
    tuned = [(grid, rate) for grid, rate in zip(grids, runs["learning_rate"], strict=True) if len(grid) > 1]
    machines = {", ".join(dict.fromkeys(row)) for row in runs[["machine", "device", "dtype"]].itertuples(index=False)}
    return {
        "data_sets": list(dict.fromkeys(case.data_set for case in cases)),
        "models": list(dict.fromkeys(case.model for case in cases)),
        "seeds_each": {f"{case.data_set}, {case.model}": len(case.runs[FULL, "epochs"].seeds) for case in cases},
        "fine_tunes": len(runs),
        "fine_tunes_measured": study.measured,
        "tuned_rates": len(tuned),
        "tuned_rates_at_an_end": sum(rate in (min(grid), max(grid)) for grid, rate in tuned),
        "machines": sorted(machines),
    }


def _natural(cases: Sequence[Case], half: str) -> list[Json]:
    """Full fine-tuning and half by dataset: with labels as drawn, and as frequent as in the dataset's test file."""
    found = []
    for case in cases:
        if case.natural_chance is not None and (half, "epochs") in case.runs:
            row: Json = {"data_set": case.data_set, "majority": 100 * case.natural_chance}
            row["chance"] = 100 * (case.chance or 0.0)
            for name, method in (("full", FULL), ("half", half)):
                row |= {name: case.quality(method), f"{name}_natural": case.natural_quality(method)}
            found.append(row)
    return found
