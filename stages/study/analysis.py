"""The analysis of a study's tables: ``summary.json``, tables, figures, and the pages that show them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from salf.files import replacing_folder, rounded, write_json, write_text
from stages.study import figures, shown
from stages.study.comparisons import by_depth, compared, over_constant
from stages.study.description import FULL
from stages.study.description import Case as Key
from stages.study.headline import Scope, finding
from stages.study.headroom import headroom, interactions
from stages.study.laws import ablation, coverage, fits
from stages.study.measured import PAPER, Case, Study
from stages.study.reading import read_study
from stages.study.resamples import Resamples, holm, interval
from stages.study.tables import records
from stages.study.verdicts import ORACLE, Drawn, choose, degenerate, leave_one_out, overall, sensitivity, verdicts

Json = dict[str, Any]
# Of the default selector, in summary.json; regrets are at equal or lower cost unless they say otherwise.
_FIGURES: Final = {
    "mean_regret_points": "regret_at_cost",
    "mean_regret_any_cost_points": "regret",
    "mean_regret_cross_fitted_points": "regret_cross_fitted",
    "mean_regret_at_cost_cross_fitted_points": "regret_at_cost_cross_fitted",
    "mean_behind_full_points": "behind_full",
    "cost_share": "price",
}
_LARGEST: Final = {"max_regret_points": "worst_at_cost", "max_regret_any_cost_points": "worst"}


def analyse(folder: Path, page: Path | None, cost_cap: float, resamples: int, confidence: float, seed: int) -> str:
    """Write the analysis into a study's folder, update a page, and return the headline.

    Args:
        folder: of the study's tables.
        page: a Markdown page with marked parts, if any.
        cost_cap: highest mean share of full fine-tuning's cost of a selector that may be the default.
        resamples: how many.
        confidence: of the intervals.
        seed: of what is drawn.

    Raises:
        UserError: a table or the page is missing or damaged.
    """
    study = read_study(folder)
    drawn = {Key(case.data_set, case.model): Resamples(case, resamples, seed) for case in study.cases}
    table = verdicts(drawn, confidence)
    summary = summarise(study, table, drawn, cost_cap, confidence, seed)
    fixed = {rule: one["over_constant"] or {} for rule, one in summary["rules"].items()}
    for p in ("p_holm", "p_holm_elsewhere"):
        table[f"fixed_{p}"] = table["rule"].map({rule: one.get(p) for rule, one in fixed.items()})
    tables = {
        "table": table,
        "curves": pd.DataFrame([point for one in drawn.values() for point in _curve(one, confidence)]),
        "ablation": ablation(study, resamples, seed, confidence),
        "coverage": coverage(study.intervals, study.cases),
        **{name: pd.DataFrame(summary[name]) for name in ("headroom", "interaction")},
    }
    for name, one in tables.items():
        write_text(folder / f"{name}.csv", one.to_csv(index=False))
    write_json(folder / "summary.json", summary)
    found = shown.page(summary, tables["curves"])
    found.write(folder)
    if page:
        shown.update(page, found)
    _draw(folder / "figures", table, drawn, [rule for rule in (summary["default_rule"], PAPER) if rule], confidence)
    return str(summary["headline"])


def summarise(study: Study, table: pd.DataFrame, drawn: Drawn, cost_cap: float, confidence: float, seed: int) -> Json:
    """Return ``summary.json``; see :func:`analyse` for the arguments."""
    default, left = choose(table, cost_cap), leave_one_out(table, cost_cap)
    models = table.loc[(table["unit"] == "points") & (table["rule"] == ORACLE), "model"].value_counts(sort=False)
    leading = str(models.idxmax()) if len(models) else study.cases[0].model
    mine = [case for case in study.cases if case.model == leading]

    def scope(named: str, part: pd.DataFrame) -> Scope:
        over = {f"over_{name}": compared(part, drawn, name, confidence) for name in (PAPER, "full")}
        over["equal_compute_over_full"] = compared(part, drawn, FULL, confidence, "compute")
        over["over_constant"] = over_constant(part, drawn, confidence)
        over["over_default"] = compared(part, drawn, default or "", confidence)
        return Scope(named, overall(part), over, degenerate(part, leading))

    alone = scope(f"the {leading} model", table[table["model"] == leading])
    every = scope(f"all {len(models)} models", table) if len(models) > 1 else alone
    scopes = [alone, every] if len(models) > 1 else [alone]
    found = [finding(one, default, confidence) for one in scopes] if default else []
    half = f"freeze-{mine[0].layers // 2}"
    chosen = next((row for row in records(every.rules.reset_index()) if row["rule"] == default), {})
    summary: Json = rounded(
        {
            "headline": " ".join(found) or "No selector was measured on every dataset within the cost cap.",
            "default_rule": default,
            "default_selector": next(iter(table.loc[table["rule"] == default, "selector"]), None),
            **_identity(study),
            **{name: chosen.get(column) for name, column in (_FIGURES | _LARGEST).items()},
            "differing": _differing(table[table["rule"] == default], confidence),
            "leave_one_out": _left_out(left) if len(left) else None,
            "sensitivity": _priced(sensitivity(table, default)),
            "rules": _rules(every),
            "alone": {"model": leading, "rules": _rules(alone)} if len(models) > 1 else None,
            "leading": leading,
            "coverage": _coverage(study),
            "interaction": records(interactions(study.cases, seed, confidence)),
            "headroom": records(headroom(study.cases, seed)),
            "natural": _natural(mine, half),
            "equal_rates": records(at_equal_rates(study, leading, half)),
            "cost_cap": cost_cap,
            "confidence": confidence,
        }
    )
    return summary


def at_equal_rates(study: Study, model: str, half: str) -> pd.DataFrame:
    """Return full fine-tuning and half at every learning rate at which both were trained with the same seeds.

    Columns: dataset; rate; accuracies on test and validation data in points, means over common seeds; ``seeds``: how
    many; ``kept``: whose rate this is in ``runs.csv`` (``full``, ``half``, ``both`` or empty).
    """
    key = ["data_set", "learning_rate", "seed"]
    lost = study.rates[study.rates["point"].isin(study.runs["point"])].assign(kept=False)
    won = study.runs.rename(columns={"quality": "test_accuracy"}).assign(kept=True)
    known = (pd.concat([won, lost], join="inner") if len(lost) else won).query("budget == 'epochs'")
    known = known[known["model"] == model].dropna(subset=["test_accuracy", "validation_accuracy"])
    full, other = (known[known["method"] == method].drop_duplicates(key) for method in (FULL, half))
    grouped = full.merge(other, on=key, suffixes=("_full", "_half")).groupby(["data_set", "learning_rate"])
    values = [f"{split}_accuracy_{side}" for split in ("test", "validation") for side in ("full", "half")]
    found = (100 * grouped[values].mean()).assign(seeds=grouped.size())
    words = {(True, True): "both", (True, False): "full", (False, True): "half", (False, False): ""}
    kept = grouped[["kept_full", "kept_half"]].any().itertuples(index=False)
    return found.assign(kept=[words[bool(one), bool(two)] for one, two in kept]).reset_index()


def _rules(scope: Scope) -> Json:
    """By selector, with its ``rank``, because a JSON object has no order; null where it was not compared."""
    over = {name: {row["rule"]: row for row in records(one)} for name, one in scope.over.items()}
    found = {}
    for rank, one in enumerate(records(scope.rules.drop(columns="price").reset_index())):
        compared_with = {name: rows.get(one["rule"]) for name, rows in over.items()}
        more = {"degenerate": scope.degenerate.get(one["rule"]), "rank": rank}
        found[one["rule"]] = {**one, **compared_with, **more}
    return found


def _curve(resamples: Resamples, confidence: float) -> list[Json]:
    """Every measured boundary of a case at equal epochs: a row of ``curves.csv``.

    ``natural`` is the accuracy under the label frequencies of the dataset's own test file; ``longer`` the quality at
    full fine-tuning's FLOPs, and ``longer_full`` full fine-tuning's over the same seeds, where they were measured.
    """
    case, rows = resamples.case, []
    for boundary, method in case.curve().items():
        seeds = case.common_seeds(method, FULL, "compute")
        low, high = interval(resamples.quality(method), confidence)
        row: Json = {"data_set": case.data_set, "model": case.model, "boundary": boundary, "layers": case.layers}
        row |= {"cost_share": case.cost_share(method), "unit": case.unit, "quality": case.quality(method)}
        row |= {"low": low, "high": high, "natural": case.natural_quality(method)}
        row["seeds"] = len(case.runs[method, "epochs"].seeds)
        row["longer"] = case.quality(method, "compute", seeds) if seeds else None
        row["longer_full"] = case.quality(FULL, "epochs", seeds) if seeds else None
        rows.append(rounded(row))
    return rows


def _draw(folder: Path, table: pd.DataFrame, drawn: Drawn, leading: Sequence[str], confidence: float) -> None:
    depth, rules = by_depth(list(drawn.values()), confidence), overall(table).drop(ORACLE, errors="ignore")
    with replacing_folder(folder) as aside:
        for (data_set, model), one in drawn.items():
            mine = table[(table["data_set"] == data_set) & (table["model"] == model)]
            write_text(aside / f"{data_set}-{model}.svg", figures.curve(one, mine, leading, confidence))
        if depth:
            write_text(aside / "depth.svg", figures.lost(depth))
        if depth and len(rules):
            write_text(aside / "costs.svg", figures.costs(rules, depth, leading))


def _identity(study: Study) -> Json:
    """What was studied, on which machines, and how many learning rates were tuned."""
    runs, cases = study.runs, study.cases
    grids = [[float(rate) for rate in rates.split()] for rates in runs["rates"]]
    tuned = [(grid, rate) for grid, rate in zip(grids, runs["learning_rate"], strict=True) if len(grid) > 1]
    machines = {", ".join(dict.fromkeys(row)) for row in runs[["machine", "device", "dtype"]].itertuples(index=False)}
    return {
        "data_sets": list(dict.fromkeys(case.data_set for case in cases)),
        "models": list(dict.fromkeys(case.model for case in cases)),
        "groups": sorted({case.group for case in cases if case.unit == "points"}),
        "seeds": sorted(int(seed) for seed in runs["seed"].unique()),
        "seeds_each": {f"{case.data_set}, {case.model}": len(case.runs[FULL, "epochs"].seeds) for case in cases},
        "fine_tunes": len(runs),
        "fine_tunes_measured": study.measured,
        "tuned_rates": len(tuned),
        "tuned_rates_at_an_end": sum(rate in (min(grid), max(grid)) for grid, rate in tuned),
        "machines": sorted(machines),
        "code_versions": int(runs["code"].nunique()),
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


def _differing(own: pd.DataFrame, confidence: float) -> Json:
    """Cases on which a selector differs significantly from full fine-tuning, adjusted over all its cases.

    The column ``p_holm`` of ``table.csv`` adjusts over the selectors of a case instead.
    """
    rows = {f"{row['data_set']}, {row['model']}": row for row in records(own.dropna(subset="p"))}
    adjusted = holm({pair: row["p"] for pair, row in rows.items()})
    sides = {pair: rows[pair]["behind_full"] for pair, p in adjusted.items() if p < 1 - confidence}
    behind, ahead = ([pair for pair, gap in sides.items() if sign * gap > 0] for sign in (1, -1))
    return {"pairs": len(rows), "behind": behind, "ahead": ahead}


def _left_out(left: pd.DataFrame) -> Json:
    means = {name: float(left[column].mean()) for name, column in _FIGURES.items()}
    return means | {name: float(left[column].max()) for name, column in _LARGEST.items()} | {"groups": _priced(left)}


def _priced(found: pd.DataFrame) -> list[Json]:
    """Rows whose cost includes deciding."""
    return records(found.assign(cost_share=found["price"]).drop(columns="price")) if len(found) else []


def _coverage(study: Study) -> list[Json]:
    """By source, over all cases: how often a law fits, and how often its intervals cover."""
    laws, covered, found = fits(study.intervals, study.cases), coverage(study.intervals, study.cases), []
    for source, mine in covered.groupby("source") if len(covered) else []:
        named = laws.loc[laws["source"] == source, "law"]
        counts = dict(Counter(sorted(named[named != ""])))
        row: Json = {"source": source, "fitted": sum(counts.values()), "asked": len(named), "laws": counts}
        row |= {"cases": len(mine), "places": int(mine["places"].sum()), "nominal": mine["nominal"].iloc[0]}
        found.append({**row, "covered": float(mine["covered"].sum() / mine["places"].sum())})
    return found
