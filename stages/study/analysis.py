"""The analysis of a study's tables: ``summary.json``, tables, figures, and the pages that show them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from salf.files import replacing_folder, rounded, write_json, write_text
from stages.study import figures, headline, shown
from stages.study.comparisons import by_depth, compared, over_constant
from stages.study.description import FULL
from stages.study.description import Case as Key
from stages.study.headroom import headroom, interactions
from stages.study.laws import ablation, coverage, fits
from stages.study.measured import PAPER, Case, Study
from stages.study.reading import read_study
from stages.study.resamples import Resamples, holm, interval
from stages.study.tables import records
from stages.study.verdicts import ORACLE, Drawn, choose, degenerate, leave_one_out, overall, sensitivity, verdicts

Json = dict[str, Any]
# Of the default selector, in summary.json; regrets are at equal or lower cost unless they say otherwise.
_FIGURES = {
    "mean_regret_points": "regret_at_cost",
    "mean_regret_any_cost_points": "regret",
    "mean_regret_cross_fitted_points": "regret_cross_fitted",
    "mean_regret_at_cost_cross_fitted_points": "regret_at_cost_cross_fitted",
    "mean_behind_full_points": "behind_full",
    "cost_share": "price",
}
_LARGEST = {"max_regret_points": "worst_at_cost", "max_regret_any_cost_points": "worst"}


class Scope(NamedTuple):
    """The study, or its part of one model.

    Attributes:
        named: in words.
        rules: each selector over its cases.
        over: comparisons by name, indexed by selector.
        degenerate: selectors that cannot show what looking at data or model is worth, and why.
    """

    named: str
    rules: pd.DataFrame
    over: dict[str, pd.DataFrame]
    degenerate: dict[str, str]

    def json(self) -> Json:
        """By selector, with its ``rank``, because a JSON object has no order; null where it was not compared."""
        over = {name: dict(zip(one["rule"], records(one), strict=True)) for name, one in self.over.items()}
        return {
            one["rule"]: {
                **one,
                **{name: found.get(one["rule"]) for name, found in over.items()},
                "degenerate": self.degenerate.get(one["rule"]),
                "rank": rank,
            }
            for rank, one in enumerate(records(self.rules.drop(columns="price").reset_index()))
        }


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
    curves = pd.DataFrame([rounded(point) for one in drawn.values() for point in _curve(one, confidence)])
    fixed = {rule: one["over_constant"] or {} for rule, one in summary["rules"].items()}
    for p in ("p_holm", "p_holm_elsewhere"):
        table[f"fixed_{p}"] = table["rule"].map({rule: one.get(p) for rule, one in fixed.items()})
    tables = {
        "table": table,
        "curves": curves,
        "ablation": ablation(study, resamples, seed, confidence).pipe(_rounded),
        "coverage": coverage(study.intervals, study.cases),
        **{name: pd.DataFrame(summary[name]) for name in ("headroom", "interaction")},
    }
    for name, one in tables.items():
        write_text(folder / f"{name}.csv", one.to_csv(index=False))
    write_json(folder / "summary.json", summary)
    found = shown.page(summary, curves)
    found.write(folder)
    if page:
        shown.update(page, found)
    _draw(folder / "figures", table, drawn, [rule for rule in (summary["default_rule"], PAPER) if rule], confidence)
    return str(summary["headline"])


def summarise(study: Study, table: pd.DataFrame, drawn: Drawn, cost_cap: float, confidence: float, seed: int) -> Json:
    """Return ``summary.json``; see :func:`analyse` for the arguments."""
    default, left = choose(table, cost_cap), leave_one_out(table, cost_cap)
    cases = {case.model: [one for one in study.cases if one.model == case.model] for case in study.cases}
    data_sets = table[(table["unit"] == "points") & (table["rule"] == ORACLE)]["model"].value_counts(sort=False)
    leading = str(data_sets.idxmax()) if len(data_sets) else max(cases)

    def scope(named: str, part: pd.DataFrame) -> Scope:
        over = {
            f"over_{PAPER}": compared(part, drawn, PAPER, confidence),
            "over_full": compared(part, drawn, FULL, confidence),
            "equal_compute_over_full": compared(part, drawn, FULL, confidence, "compute"),
            "over_constant": over_constant(part, drawn, confidence),
            "over_default": compared(part, drawn, default or "", confidence),
        }
        return Scope(named, overall(part), over, degenerate(part, leading))

    scopes = [scope(headline.all_models(cases, leading), table)]
    if len(data_sets) > 1:
        scopes.append(scope(f"the {leading} model", table[table["model"] == leading]))
    half = f"freeze-{cases[leading][0].layers // 2}"
    chosen = scopes[0].rules.loc[default] if default else {}
    found = {
        "headline": headline.headline(scopes, default, left, confidence),
        "default_rule": default,
        "default_selector": next(iter(table.loc[table["rule"] == default, "selector"]), None),
        **_identity(study),
        **{name: chosen.get(column) for name, column in (_FIGURES | _LARGEST).items()},
        "differing": _differing(table[table["rule"] == default], confidence),
        "leave_one_out": _left_out(left) if len(left) else None,
        "sensitivity": _priced(sensitivity(table, default)),
        "rules": scopes[0].json(),
        "alone": {"model": leading, "rules": scopes[1].json()} if scopes[1:] else None,
        "leading": leading,
        "coverage": _coverage(study),
        "interaction": records(interactions(study.cases, seed, confidence)),
        "headroom": records(headroom(study.cases, seed)),
        "natural": _natural(cases[leading], half),
        "equal_rates": records(at_equal_rates(study, leading, half)),
        "cost_cap": cost_cap,
        "confidence": confidence,
    }
    summary: Json = rounded(found)
    return summary


def at_equal_rates(study: Study, model: str, half: str) -> pd.DataFrame:
    """Return full fine-tuning and half at every learning rate at which both were trained with the same seeds.

    Columns: dataset; rate; accuracies on test and validation data in points, means over common seeds; ``seeds``: how
    many; ``kept``: whose rate this is in ``runs.csv`` (``full``, ``half``, ``both`` or empty).
    """
    key = ["data_set", "learning_rate", "seed"]
    tables = [study.runs.rename(columns={"quality": "test_accuracy"}).assign(kept=True)]
    tables.append(study.rates[study.rates["point"].isin(study.runs["point"])].assign(kept=False))
    known = pd.concat([one for one in tables if len(one)], join="inner")
    known = known.dropna(subset=["test_accuracy", "validation_accuracy"])
    known = known[(known["model"] == model) & (known["budget"] == "epochs")]
    full, other = (known[known["method"] == method].drop_duplicates(key) for method in (FULL, half))
    grouped = full.merge(other, on=key, suffixes=("_full", "_half")).groupby(["data_set", "learning_rate"])
    values = [f"{split}_accuracy_{side}" for split in ("test", "validation") for side in ("full", "half")]
    kept = grouped[["kept_full", "kept_half"]].any()
    words = {(True, True): "both", (True, False): "full", (False, True): "half", (False, False): ""}
    names = [words[bool(one), bool(two)] for one, two in kept.to_numpy()]
    return (100 * grouped[values].mean()).assign(seeds=grouped.size(), kept=names).reset_index()


def _curve(resamples: Resamples, confidence: float) -> list[Json]:
    """Every measured boundary of a case at equal epochs: a row of ``curves.csv``.

    ``natural`` is the accuracy under the label frequencies of the dataset's own test file; ``longer`` the quality at
    full fine-tuning's FLOPs, and ``longer_full`` full fine-tuning's over the same seeds, where they were measured.
    """
    case, rows = resamples.case, []
    for boundary, method in case.curve().items():
        seeds = case.common_seeds(method, FULL, "compute")
        low, high = interval(resamples.quality(method), confidence)
        rows.append(
            {
                "data_set": case.data_set,
                "model": case.model,
                "boundary": boundary,
                "layers": case.layers,
                "cost_share": case.cost_share(method),
                "unit": case.unit,
                "quality": case.quality(method),
                "low": low,
                "high": high,
                "natural": case.natural_quality(method),
                "seeds": len(case.runs[method, "epochs"].seeds),
                "longer": case.quality(method, "compute", seeds) if seeds else None,
                "longer_full": case.quality(FULL, "epochs", seeds) if seeds else None,
            }
        )
    return rows


def _draw(folder: Path, table: pd.DataFrame, drawn: Drawn, leading: Sequence[str], confidence: float) -> None:
    with replacing_folder(folder) as aside:
        for (data_set, model), one in drawn.items():
            mine = table[(table["data_set"] == data_set) & (table["model"] == model)]
            write_text(aside / f"{data_set}-{model}.svg", figures.curve(one, mine, leading, confidence))
        depth = by_depth(list(drawn.values()), confidence)
        rules = overall(table).drop(ORACLE, errors="ignore")
        if depth:
            write_text(aside / "depth.svg", figures.lost(depth))
        if depth and len(rules):
            write_text(aside / "costs.svg", figures.costs(rules, depth, leading))


def _identity(study: Study) -> Json:
    """What was studied, on which machines, and how many learning rates were tuned."""
    runs = study.runs
    grids = [[float(rate) for rate in rates.split()] for rates in runs["rates"]]
    tuned = [(grid, rate) for grid, rate in zip(grids, runs["learning_rate"], strict=True) if len(grid) > 1]
    machines = {", ".join(dict.fromkeys(row)) for row in runs[["machine", "device", "dtype"]].itertuples(index=False)}
    return {
        "data_sets": list(dict.fromkeys(case.data_set for case in study.cases)),
        "models": list(dict.fromkeys(case.model for case in study.cases)),
        "groups": sorted({case.group for case in study.cases if case.unit == "points"}),
        "seeds": sorted(int(seed) for seed in runs["seed"].unique()),
        "seeds_each": {f"{case.data_set}, {case.model}": len(case.runs[FULL, "epochs"].seeds) for case in study.cases},
        "fine_tunes": len(runs),
        "fine_tunes_measured": study.measured,
        "tuned_rates": len(tuned),
        "tuned_rates_at_an_end": sum(rate in (min(grid), max(grid)) for grid, rate in tuned),
        "machines": sorted(machines),
        "code_versions": int(runs["code"].nunique()),
    }


def _natural(cases: Sequence[Case], half: str) -> list[Json]:
    """Full fine-tuning and half by dataset: with labels as drawn, and as frequent as in the dataset's test file."""
    return [
        {
            "data_set": case.data_set,
            "majority": 100 * case.natural_chance,
            "chance": 100 * (case.chance or 0.0),
            **{name: case.quality(method) for name, method in (("full", FULL), ("half", half))},
            **{f"{name}_natural": case.natural_quality(method) for name, method in (("full", FULL), ("half", half))},
        }
        for case in cases
        if case.natural_chance is not None and (half, "epochs") in case.runs
    ]


def _differing(own: pd.DataFrame, confidence: float) -> Json:
    """Cases on which a selector differs significantly from full fine-tuning, adjusted over all its cases.

    The column ``p_holm`` of ``table.csv`` adjusts over the selectors of a case instead.
    """
    own = own.dropna(subset="p").set_index(own["data_set"] + ", " + own["model"])
    adjusted = pd.Series(holm(own["p"].to_dict()), dtype=float)
    behind = own.loc[adjusted.index[adjusted < 1 - confidence], "behind_full"]
    return {"pairs": len(own), "behind": list(behind.index[behind > 0]), "ahead": list(behind.index[behind < 0])}


def _left_out(left: pd.DataFrame) -> Json:
    means = {name: float(left[column].mean()) for name, column in _FIGURES.items()}
    return means | {name: float(left[column].max()) for name, column in _LARGEST.items()} | {"groups": _priced(left)}


def _priced(found: pd.DataFrame) -> list[Json]:
    """Rows whose cost includes what deciding costs."""
    return records(found.assign(cost_share=found["price"]).drop(columns="price")) if len(found) else []


def _coverage(study: Study) -> list[Json]:
    """By source, over all cases: how often a law fits, and how often its intervals cover."""
    laws, found = fits(study.intervals, study.cases), []
    covered = coverage(study.intervals, study.cases)
    for source, mine in covered.groupby("source") if len(covered) else []:
        named = laws.loc[laws["source"] == source, "law"]
        counts: Mapping[str, int] = Counter(sorted(named[named != ""]))
        found.append(
            {
                "source": source,
                "fitted": sum(counts.values()),
                "asked": len(named),
                "laws": dict(counts),
                "cases": len(mine),
                "places": int(mine["places"].sum()),
                "covered": float(mine["covered"].sum() / mine["places"].sum()),
                "nominal": mine["nominal"].iloc[0],
            }
        )
    return found


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([rounded(row) for row in table.to_dict("records")], columns=table.columns)
