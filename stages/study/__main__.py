"""The study's tables → table.csv, summary.json and figures beside them."""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from salf.files import replacing_folder, rounded, write_json, write_text
from stages.common.command import exit_code
from stages.study import figures
from stages.study.ablation import ablation
from stages.study.coverage import coverage
from stages.study.curves import Point, curve_points
from stages.study.depth import by_depth
from stages.study.judging import overall
from stages.study.measured import PAPER
from stages.study.page import update
from stages.study.reading import read_study
from stages.study.resamples import Resamples
from stages.study.summary import summarise
from stages.study.verdicts import ORACLE, verdicts

_HOLM = ("p_holm", "p_holm_elsewhere")  # of a rule and the fixed depth of its cost, over all cases


def main(argv: Sequence[str] | None = None) -> None:
    """Write the analysis of a study's tables."""
    given = _arguments(argv)
    study = read_study(given.study)
    drawn = {(case.data_set, case.model): Resamples(case, given.resamples, given.seed) for case in study.cases}
    by_case = {case: verdicts(one, given.confidence) for case, one in drawn.items()}
    found = [verdict for each in by_case.values() for verdict in each]
    covered = coverage(study.intervals, study.cases)
    summary = summarise(study, found, drawn, covered, given.cost_cap, given.confidence, given.seed)

    fixed = {rule: one["over_constant"] or {} for rule, one in summary["rules"].items()}
    rows = [asdict(verdict) | {f"fixed_{p}": fixed.get(verdict.rule, {}).get(p) for p in _HOLM} for verdict in found]
    write_text(given.study / "table.csv", _csv(rows))
    measured = [point for one in drawn.values() for point in curve_points(one, given.confidence)]
    points = [Point(**rounded(asdict(point))) for point in measured]
    write_text(given.study / "curves.csv", _csv([asdict(point) for point in points]))
    write_text(
        given.study / "ablation.csv",
        _csv(rounded(ablation(study, given.resamples, given.seed, given.confidence))),
    )
    write_text(given.study / "coverage.csv", _csv([asdict(one) | {"share": one.share} for one in covered]))
    for name in ("headroom", "interaction"):
        write_text(given.study / f"{name}.csv", _csv(summary[name]))
    write_json(given.study / "summary.json", summary)
    leading = [rule for rule in (summary["default_rule"], PAPER) if rule]
    with replacing_folder(given.study / "figures") as folder:
        for (data_set, model), one in drawn.items():
            svg = figures.curve(one, by_case[data_set, model], leading, given.confidence)
            write_text(folder / f"{data_set}-{model}.svg", svg)
        depth = by_depth(list(drawn.values()), given.confidence)
        if depth:
            write_text(folder / "depth.svg", figures.lost(depth))
        rules = [one for one in overall(found) if one.rule != ORACLE]
        if rules and depth:
            write_text(folder / "costs.svg", figures.costs(rules, depth, leading))
    if given.page is not None:
        update(given.page, summary, points)
    print(summary["headline"])


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return out.getvalue()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.study",
        description="Analyse a study: compare the selectors by the fine-tunes measured so far (make study).",
        epilog="example: python -m stages.study --study reports/study --page docs/method.md",
    )
    parser.add_argument("--study", type=Path, default=Path("reports/study"), help="folder of the study's tables")
    parser.add_argument("--page", type=Path, help="a page whose marked parts are updated, e.g. docs/method.md")
    parser.add_argument("--cost-cap", type=float, default=0.6, help="highest cost share of a default selector (0.6)")
    parser.add_argument("--resamples", type=int, default=10000, help="resamples of examples and seeds (10000)")
    parser.add_argument("--confidence", type=float, default=0.95, help="confidence level of the intervals (0.95)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the resamples")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(main))
