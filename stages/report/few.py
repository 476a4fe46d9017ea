"""Quality against the number of training examples, from the table that ``make few-shot`` writes."""

from typing import Final

from scipy.stats import t as student

from salf.metrics import SCORES
from stages.report.artifacts import Artifacts
from stages.report.figures import curves
from stages.report.parts import Section

_SIZE: Final = "data.limits.train"


def few_section(artifacts: Artifacts) -> Section | None:
    """A figure of every test split; ``None`` without that table."""
    rows = artifacts.few
    if rows is None:
        return None
    score = next(name for name in SCORES if (rows.measure == name).any())
    rows = rows[(rows.measure == score) & ~rows.panel.str.contains(" ")]  # the names of other panels have spaces
    section = Section("few", "Few examples", "How many training examples does it take?")
    section.sentences.append(
        "Means over draws of the training examples, with 95\u202f% intervals (Student’s t; none of a single draw). "
        "This section is not part of the chain: make few-shot measures it, and reports/few-shot.csv has its numbers."
    )
    for split, found in rows.groupby("panel", sort=False):
        means = found.groupby(["model", _SIZE], sort=False).value.agg(["mean", "sem", "count"]).reset_index()
        means["half"] = means["sem"] * student.ppf(0.975, means["count"] - 1)
        models = {str(model): each for model, each in means.groupby("model", sort=False)}
        lines = {model: (model, list(zip(each[_SIZE], each["mean"], strict=True))) for model, each in models.items()}
        errors = {model: each.half.fillna(0.0).tolist() for model, each in models.items()}
        what = f"{SCORES[score][0].upper()}{SCORES[score][1:]} on {split}"
        section.figures.append(curves(f"fig-few-{split}", what, ("training examples", SCORES[score]), lines, errors))
    return section
