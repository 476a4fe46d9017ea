"""The analysis of a study's tables: ``summary.json``, tables, figures, and the pages that show them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from salf.files import read_json, rounded, write_json, write_text
from stages.study import figures, methods, shown
from stages.study.measured import Study
from stages.study.reading import read_study
from stages.study.resamples import Resamples, interval
from stages.study.summary import Estimate, Json, MethodSummary, RaceSummary, ScopeEffect, Summary
from stages.study.tables import Tables, records


def analyse(folder: Path, pages: Sequence[Path], resamples: int) -> str:
    """Write the analysis into a study's folder, update pages, and return the headline."""
    study, first = read_study(folder), folder / "first_round.json"
    drawn = {case.key: Resamples(case, resamples) for case in study.cases}
    summary = summarise(study, Tables(folder), drawn, read_json(first) if first.exists() else None)
    curves = pd.DataFrame([row for one in drawn.values() for row in _curve(one)])
    write_text(folder / "curves.csv", curves.to_csv(index=False))
    said = summary.model_dump(mode="json")
    write_json(folder / "summary.json", said)
    written = shown.page(said, curves)
    written.write(folder)
    for page in pages:
        shown.update(page, written)
    if depth := figures.mean_depth(methods.cases_of(drawn, summary.leading)):
        write_text(folder / "figures/methods.svg", figures.methods(depth, summary.methods))
    return summary.headline


def summarise(study: Study, tables: Tables, drawn: methods.Drawn, first_round: Json | None) -> Summary:
    """Return ``summary.json`` of a study, its tables, what was drawn of its cases, and the first round's results."""
    models = pd.Series([case.model for case in study.cases if case.unit == "points"], dtype=str).value_counts()
    leading = str(models.idxmax()) if len(models) else study.cases[0].model
    cases = methods.cases_of(drawn, leading)
    found = methods.summarise(cases)
    default, why = methods.default_of(cases, found)
    others = {model: methods.summarise(methods.cases_of(drawn, model)) for model in models.index if model != leading}
    race, effects = methods.race_of(cases, study), methods.orthogonal(cases, tables)
    parts = [_told_default(default, found[default], why.missed)]
    parts += [_told(name, found.get(name)) for name in _TOLD if name != default]
    parts += [_told_race(race), first_round["headline"] if first_round else "", _told_orthogonal(effects)]
    summary = Summary(
        headline=" ".join(part for part in parts if part),
        default_method=default,
        default=why,
        methods=found,
        other_models={model: each for model, each in others.items() if any("answer" in name for name in each)},
        race=race,
        answer_side=methods.answer_side_of(found),
        orthogonal=effects,
        forgetting=methods.forgetting(tables, leading),
        weights_kept=methods.weights_kept(tables, leading),
        by_dataset=methods.by_dataset(cases, found),
        sign=methods.sign(cases, study),
        techniques=methods.techniques(cases),
        equal_rates=records(methods.at_equal_rates(study, leading)),
        first_round=first_round,
        leading=leading,
        study=_identity(study),
    )
    return Summary.model_validate(rounded(summary.model_dump(mode="json")))


def _told_orthogonal(effects: Sequence[ScopeEffect]) -> str:
    """The paper's claim that a narrower scope and adapters combine: an interval below zero contradicts it."""
    said = []
    for one in effects:
        verdict = "contradicts" if one.lora_minus_weights.interval_examples[1] < 0 else "consistent with"
        said.append(f"{verdict} ({one.scope}, on {', '.join(one.datasets)})")
    return f"Orthogonal to parameter-efficient fine-tuning: {', '.join(said) or 'not tested'}."


def _told_race(race: RaceSummary | None) -> str:
    if race is None:
        return ""
    return (
        f"A race costs {race.cost_share:.0%} of one full fine-tune, all arms included, and is "
        f"{_worse(-race.points_below_tuned_grid)} than the better grid of its arms' methods (test sets: "
        f"{len(race.datasets)})."
    )


_TOLD: Final = ("full+answer", "full+answer+lora", "lora", "half")


def _told_default(name: str, one: MethodSummary, missed: Mapping[str, float]) -> str:
    text = f"Default by the rule fixed beforehand: {name}. {_told(name, one)}"
    units = {"mean_difference_points": "{:.2f} points", "cost_share": "{:.0%} of a full fine-tune"}
    words = {"mean_difference_points": "the difference", "cost_share": "a single run", "total_cost_share": "all tuning"}
    gaps = [f"{words[aim]} by {units.get(aim, units['cost_share']).format(gap)}" for aim, gap in missed.items()]
    return text + (f" It misses the aim: {', '.join(gaps)}." if gaps else " It reaches the aim.")


def _told(name: str, one: MethodSummary | None) -> str:
    """A method in one sentence."""
    if one is None:
        return ""
    seeds = " to ".join(map(str, sorted({one.fewest_seeds, len(one.seeds)})))
    text = (
        f"{name} is {_worse(one.mean_difference_points)} than tuned full fine-tuning (datasets: {one.groups}, seeds: "
        f"{seeds}; {_ends(one)}) at {one.cost_share:.0%} of its FLOPs, {one.total_cost_share:.0%} with tuning"
    )
    if one.points_above_fixed_depth is not None:
        text += f", and {_worse(one.points_above_fixed_depth)} than the fixed depth of its cost"
    return text + (f"; not measured on {len(one.missing)} more test sets." if one.missing else ".")


def _ends(one: Estimate) -> str:
    ends = {"on these datasets": one.interval_examples, "over datasets like these": one.interval_datasets}
    told = [f"{each[0]:+.2f} to {each[1]:+.2f} {where}" for where, each in ends.items() if each]
    return " and ".join(told).replace("-", "\N{MINUS SIGN}")


def _worse(points: float) -> str:
    points = round(points, 2)
    return f"{abs(points):.2f} points {'worse' if points < 0 else 'better'}"


def _curve(resamples: Resamples) -> list[Json]:
    """Every measured boundary of a case at equal epochs: a row of ``curves.csv``."""
    case, rows = resamples.case, []
    for boundary, method in case.curve().items():
        low, high = interval(resamples.quality(method))
        row: Json = {"data_set": case.data_set, "model": case.model, "boundary": boundary, "layers": case.layers}
        row |= {"cost_share": case.cost_share(method), "unit": case.unit, "quality": case.quality(method)}
        row |= {"low": low, "high": high, "natural": case.natural_quality(method)}
        rows.append(rounded({**row, "seeds": len(case.runs[method, "epochs"].seeds)}))
    return rows


def _identity(study: Study) -> Json:
    """The scope of the study: models, datasets, fine-tunes, machines."""
    runs = study.runs
    machines = {", ".join(dict.fromkeys(row)) for row in runs[["machine", "device", "dtype"]].itertuples(index=False)}
    return {
        "data_sets": list(dict.fromkeys(case.data_set for case in study.cases)),
        "models": list(dict.fromkeys(case.model for case in study.cases)),
        "fine_tunes": len(runs),
        "fine_tunes_measured": study.measured,
        "machines": sorted(machines),
    }
