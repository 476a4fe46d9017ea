"""Quality against the number of training examples, from the table that ``make few-shot`` writes."""

import math
from functools import partial
from typing import Final

import pandas as pd
from scipy.stats import t as student

from salf.metrics import SCORES
from stages.report.artifacts import Artifacts
from stages.report.figures import curves
from stages.report.parts import Cell, Columns, Section, number, table
from stages.report.wording import decimal

_SIZE: Final = "data.limits.train"


def few_section(artifacts: Artifacts) -> Section | None:
    """A figure and a table of every test split; ``None`` without that table."""
    rows = artifacts.few
    if rows is None:
        return None
    score = next(name for name in SCORES if (rows.measure == name).any())
    rows = rows[(rows.measure == score) & ~rows.panel.str.contains(" ")]  # the names of other panels have spaces
    section = Section("few", "Few examples", "How many training examples does it take?")
    section.sentences.append(
        "Means over draws of the training examples, with 95\u202f% intervals (Student’s t; none of a single draw). "
        "This section is not part of the chain: make few-shot measures it."
    )
    for split, found in rows.groupby("panel", sort=False):
        means = found.groupby(["model", _SIZE], sort=False).value.agg(["mean", "sem", "count"]).reset_index()
        means["half"] = means["sem"] * student.ppf(0.975, means["count"] - 1)
        models = {str(model): each.set_index(_SIZE) for model, each in means.groupby("model", sort=False)}
        lines = {model: (model, list(zip(each.index, each["mean"], strict=True))) for model, each in models.items()}
        errors = {model: each.half.fillna(0.0).tolist() for model, each in models.items()}
        what = f"{SCORES[score][0].upper()}{SCORES[score][1:]} on {split}"
        section.figures.append(curves(f"fig-few-{split}", what, ("training examples", SCORES[score]), lines, errors))
        columns: Columns[tuple[str, pd.DataFrame]] = {"Model": lambda one: one[0]}
        columns |= {f"{size} examples": partial(_cell, size) for size in sorted(means[_SIZE].unique())}
        section.tables.append(table(f"few-{split}", f"{what}.", models.items(), columns))
    return section


def _cell(size: int, model: tuple[str, pd.DataFrame]) -> Cell:
    found = model[1].reindex([size]).iloc[0]
    return number(found["mean"], decimal, "" if math.isnan(found.half) else f"± {decimal(found.half)}")
