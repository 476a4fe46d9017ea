"""Reads a study's tables: which rows count, and what every case measured."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from salf.errors import UserError, reading
from salf.methods import RACE
from stages.study.description import FULL, Budget
from stages.study.measured import Case, Floats, Run, Study
from stages.study.settings import still_holds
from stages.study.tables import read_settings, read_table

_MADE_BY: Final = "python -m stages.study"
_CASE = ["data_set", "model"]
_METHOD = [*_CASE, "method"]
_MEANS = ("flops", "validation_loss", "validation_accuracy", "epochs")


def read_study(folder: Path) -> Study:
    """Read the tables of a study.

    Rows count if their settings hold under the last ones of their case and method. A method is read at the learning
    rate of its first seed, but a race at what it chose with each; all boundaries of a case are read with the same
    seeds, those that keep most fine-tunes.

    Raises:
        UserError: a table is missing or damaged, or no case has full fine-tuning.
    """
    for path in (folder / "runs.csv", folder / "predictions.parquet"):
        if not path.exists():
            raise UserError(f"{path}: no such file; it is made by: {_MADE_BY}")
    runs, priors, rates = (read_table(folder, name) for name in ("runs", "priors", "rates"))
    with reading(folder / "predictions.parquet", "damaged table"):
        said = pq.read_table(folder / "predictions.parquet").to_pandas()
    said = said.assign(label=said.get("label")).astype({"point": str}).set_index("point").sort_index()
    kept = read_settings(folder)
    present = runs[_of_last(runs, "settings", _CASE, kept)]
    present = present[_of_last(present, "method_settings", _METHOD, kept)]
    present = present.drop_duplicates([*_METHOD, "seed", "budget"], keep="last")
    runs = _complete(present[_at_one_rate(present)])
    full = (runs["method"] == FULL) & (runs["budget"] == "epochs")
    grouped = runs.groupby(_CASE, sort=False)
    cases = tuple(_case(rows, said, priors, kept) for _, rows in grouped if full[rows.index].any())
    if not cases:
        raise UserError(f"{folder}: no dataset's full fine-tuning is measured yet; run: {_MADE_BY}")
    return Study(cases, runs, len(present), rates)


def _of_last(runs: pd.DataFrame, column: str, by: list[str], kept: Mapping[str, Any]) -> "pd.Series[bool]":
    """Mask of the rows whose settings agree with the last ones of their group."""
    pairs = zip(runs[column], runs.groupby(by)[column].transform("last"), strict=True)
    holding = [still_holds(kept.get(own, own), kept.get(newest, newest)) for own, newest in pairs]
    return pd.Series(holding, runs.index, dtype=bool)


def _at_one_rate(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Mask of the rows with the learning rate of their method's first seed at equal epochs, where that was measured.

    Races choose with every seed, so that all of their rows count.
    """
    first = runs[runs["budget"] == "epochs"].sort_values("seed", kind="stable").drop_duplicates(_METHOD)
    rates = runs[_METHOD].merge(first[[*_METHOD, "learning_rate"]], on=_METHOD, how="left")["learning_rate"]
    rates.index = runs.index
    return rates.isna() | (rates == runs["learning_rate"]) | (runs["method"] == RACE)


def _complete(runs: pd.DataFrame) -> pd.DataFrame:
    """Reduce every case's boundaries at equal epochs to the largest complete table of boundaries and seeds."""
    left = runs
    for _, rows in runs[_at_boundary(runs) & (runs["budget"] == "epochs")].groupby(_CASE):
        seeds_of = {str(method): frozenset(group["seed"]) for method, group in rows.groupby("method")}
        seeds = _most_seeds(seeds_of)
        whole = rows["method"].isin([method for method, own in seeds_of.items() if own >= seeds])
        left = left.drop(rows.index[~(whole & rows["seed"].isin(seeds))])
    return left


def _most_seeds(seeds_of: Mapping[str, frozenset[int]]) -> frozenset[int]:
    """The seeds that keep most fine-tunes of boundaries measured with all of them; if equal, with more boundaries."""
    seeds = sorted(seeds_of.get(FULL) or frozenset.union(*seeds_of.values()))
    some = [frozenset(chosen) for k in range(1, len(seeds) + 1) for chosen in combinations(seeds, k)]
    return max(some, key=lambda chosen: len(chosen) * sum(of >= chosen for of in seeds_of.values()))


def _at_boundary(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Mask of the fine-tunes that freeze the layers up to a boundary, 0 included."""
    return runs["method"].str.match(r"freeze-\d+$") | (runs["method"] == FULL)


def _case(rows: pd.DataFrame, said: pd.DataFrame, priors: pd.DataFrame, kept: Mapping[str, Any]) -> Case:
    first = rows.iloc[0]
    limits = kept.get(first["settings"], {}).get("data", {}).get("limits")
    freezes = rows[_at_boundary(rows)]
    examples = _examples(said, first["point"])
    labels, balanced = examples["label"], first["measure"] == "balanced-accuracy"
    if balanced and labels.isna().any():
        raise UserError(f"{first['data_set']}, {first['model']}: test examples without labels cannot count by label")
    weights = None if first["measure"] == "loss" else _weights(labels, balanced=balanced)
    prior = priors[priors["data_set"] == first["data_set"]].set_index("label")["share"]
    prior = prior[prior.index.isin(labels)]  # a label without test examples has no accuracy
    return Case(
        data_set=first["data_set"],
        group=first["group"],
        model=first["model"],
        measure=first["measure"],
        test_set=crc32("\n".join([first["group"], *examples["example_id"]]).encode()),
        labels=pd.factorize(labels)[0] if balanced else None,
        natural=_natural(labels, prior) / weights if weights is not None and len(prior) else None,
        layers=int(first["layers"]),
        runs=dict(_runs(rows, said, weights, limits["validation"] / limits["train"] if limits else 0.0)),
        boundaries=dict(zip(freezes["method"], freezes["boundary"].astype(int).tolist(), strict=True)),
    )


def _examples(said: pd.DataFrame, point: str) -> pd.DataFrame:
    """One fine-tune's predictions, in the order of the test examples' names."""
    return said.loc[[point]].sort_values("example_id") if point in said.index else said.iloc[:0]


def _weights(labels: "pd.Series[str]", *, balanced: bool) -> Floats:
    """The weight of a right answer to every example, 1 on average; balanced: so that all labels count alike."""
    if not balanced:
        return np.ones(len(labels))
    return (len(labels) / (labels.nunique() * labels.map(labels.value_counts()))).to_numpy(float)


def _natural(labels: "pd.Series[str]", prior: "pd.Series[float]") -> Floats:
    """Weights of right answers, 1 on average, that give labels their shares in the dataset's test file."""
    shares = labels.map(prior / prior.sum()) / labels.map(labels.value_counts(normalize=True))
    return shares.to_numpy(float)


def _runs(
    rows: pd.DataFrame, said: pd.DataFrame, weights: Floats | None, validation: float
) -> Iterator[tuple[tuple[str, Budget], Run]]:
    """Runs by method and budget; all have the same test examples, in the order of their names."""
    examples: list[str] | None = None
    for (method, budget), group in rows.sort_values("seed", kind="stable").groupby(["method", "budget"], sort=False):
        values = []
        for point in group["point"]:
            mine = _examples(said, point)
            names = list(mine["example_id"])
            if names != (examples := examples or names):
                where = f"{group.iloc[0]['data_set']}, {group.iloc[0]['model']}: {method}"
                raise UserError(f"{where}: its test examples differ from the other methods'; run again: {_MADE_BY}")
            values.append(-mine["loss"] if weights is None else mine["correct"] * weights)
        means = {name: float(group[name].astype(float).mean()) for name in _MEANS}
        seeds, rates = tuple(int(seed) for seed in group["seed"]), max(len(tried.split()) for tried in group["rates"])
        run = Run(seeds, np.array(values, float), **means, rates=rates, validation=validation)
        yield (str(method), budget), run  # type: ignore[misc]
