"""A study's tables, read: which rows count, and what every case measured."""

import json
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from salf.errors import UserError
from stages.common.kept_settings import still_holds
from stages.study.measured import BALANCED, FULL, LOSS, Budget, Case, Choice, Floats, Run, Study, with_choices

_MADE_BY: Final = "python -m flows.study"


def read_study(folder: Path) -> Study:
    """Read the tables of a study.

    Of every case the rows count whose settings hold under its last ones (a parameter may have come since), of a method
    with settings of its own under its last ones, too; others are another study's. A method's first seed says at which
    learning rate it is read: what is at another one waits to be done again since the rate was tuned further. All
    boundaries of a case are read with the same seeds, those that keep most fine-tunes: one boundary's lucky seed shall
    not be held against others that lack it.

    Raises:
        UserError: a table is missing or damaged, or no case has full fine-tuning to compare with.
    """
    runs = _csv(folder / "runs.csv", {"method_settings": str, "rates": str, "settings": str})
    choices = _csv(folder / "choices.csv", {"reason": str, "scores": str, "selector": str, "settings": str})
    intervals = _csv(folder / "intervals.csv", {"law": str})
    said = _predictions(folder / "predictions.parquet")
    priors = _optional(folder / "priors.csv", ["data_set", "label", "share"])
    rates = _optional(folder / "rates.csv", [])
    kept = _kept_settings(folder / "settings.json")
    present = runs[_of_last(runs, "settings", ["data_set", "model"], kept)]
    present = present[_of_last(present, "method_settings", ["data_set", "model", "method"], kept)]
    present = present.drop_duplicates(["data_set", "model", "method", "seed", "budget"], keep="last")
    runs = _complete(present[_at_one_rate(present)])
    cases = tuple(
        _case(rows, choices, said, priors)
        for _, rows in runs.groupby(["data_set", "model"], sort=False)
        if _has_full(rows)
    )
    if not cases:
        raise UserError(f"{folder}: no data set's full fine-tuning is measured yet; run: {_MADE_BY}")
    return Study(cases, runs, len(present), intervals, rates)


def _of_last(runs: pd.DataFrame, column: str, by: list[str], kept: Mapping[str, Any]) -> "pd.Series[bool]":
    """Which rows were made under settings that hold under the last ones of their group."""
    pairs = zip(runs[column], runs.groupby(by)[column].transform("last"), strict=True)
    holding = [still_holds(kept.get(own, own), kept.get(newest, newest)) for own, newest in pairs]
    return pd.Series(holding, runs.index, dtype=bool)


def _at_one_rate(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows have the learning rate of their method's first seed at equal epochs, where that was measured."""
    key = ["data_set", "model", "method"]
    first = runs[runs["budget"] == "epochs"].sort_values("seed", kind="stable").drop_duplicates(key)
    rates = runs[key].merge(first[[*key, "learning_rate"]], on=key, how="left")["learning_rate"]
    return pd.Series(rates.isna().to_numpy() | (rates.to_numpy() == runs["learning_rate"].to_numpy()), runs.index)


def _complete(runs: pd.DataFrame) -> pd.DataFrame:
    """Of every case's fine-tunes at equal epochs the largest whole table of boundaries and seeds."""
    left = runs.copy()
    for _, rows in runs[_at_boundary(runs) & (runs["budget"] == "epochs")].groupby(["data_set", "model"]):
        seeds_of = {str(method): frozenset(group["seed"]) for method, group in rows.groupby("method")}
        seeds = _most_seeds(seeds_of)
        whole = rows["method"].map(lambda method, of=seeds_of, all_of=seeds: of[method] >= all_of)
        left = left.drop(rows.index[~(whole & rows["seed"].isin(seeds))])
    return left


def _most_seeds(seeds_of: Mapping[str, frozenset[int]]) -> frozenset[int]:
    """The seeds that, times the boundaries measured with all of them, are most; of equals those with more boundaries.

    Full fine-tuning is one of these boundaries wherever it was measured at all.
    """
    seeds = sorted(seeds_of.get(FULL) or frozenset.union(*seeds_of.values()))
    some = [frozenset(chosen) for k in range(1, len(seeds) + 1) for chosen in combinations(seeds, k)]
    return max(some, key=lambda chosen: len(chosen) * sum(of >= chosen for of in seeds_of.values()))


def _at_boundary(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Which fine-tunes freeze the layers up to a boundary, 0 included."""
    return runs["method"].str.match(r"freeze-\d+$") | (runs["method"] == FULL)


def _has_full(rows: pd.DataFrame) -> bool:
    return bool(((rows["method"] == FULL) & (rows["budget"] == "epochs")).any())


def _case(rows: pd.DataFrame, choices: pd.DataFrame, said: pd.DataFrame, priors: pd.DataFrame) -> Case:
    first = rows.iloc[0]
    mine = choices[(choices["data_set"] == first["data_set"]) & (choices["model"] == first["model"])]
    freezes = rows[_at_boundary(rows)]
    examples = _examples(said, first["point"])
    labels = examples["label"]
    if first["measure"] == BALANCED and labels.isna().any():
        raise UserError(f"{first['data_set']}, {first['model']}: test examples without labels cannot count by label")
    balanced = first["measure"] == BALANCED
    weights = None if first["measure"] == LOSS else _weights(labels, balanced=balanced)
    prior = priors[priors["data_set"] == first["data_set"]].set_index("label")["share"]
    prior = prior[prior.index.isin(labels)]  # a label without test examples has no accuracy
    case = Case(
        data_set=first["data_set"],
        group=first["group"],
        model=first["model"],
        measure=first["measure"],
        test_set=crc32("\n".join([first["group"], *examples["example_id"]]).encode()),
        labels=pd.factorize(labels)[0] if balanced else None,
        chance=None if weights is None or labels.isna().any() else _chance(labels, weights),
        natural=_natural(labels, prior) / weights if weights is not None and len(prior) else None,
        natural_chance=float(prior.max() / prior.sum()) if len(prior) else None,
        layers=int(first["layers"]),
        runs=dict(_runs(rows, said, weights)),
        boundaries=dict(zip(freezes["method"], freezes["boundary"].astype(int).tolist(), strict=True)),
        between={},
        choices=(),
    )
    return with_choices(case, [_choice(row) for row in mine.to_dict("records") if row["selector"]])


def _examples(said: pd.DataFrame, point: str) -> pd.DataFrame:
    """What one fine-tune said of the test examples, in the order of their names."""
    return said.loc[[point]].sort_values("example_id") if point in said.index else said.iloc[:0]


def _weights(labels: "pd.Series[str]", *, balanced: bool) -> Floats:
    """What a right answer to every example counts, 1 on the mean; balanced: so that all labels count alike."""
    if not balanced:
        return np.ones(len(labels))
    return (len(labels) / (labels.nunique() * labels.map(labels.value_counts()))).to_numpy(float)


def _natural(labels: "pd.Series[str]", prior: "pd.Series[float]") -> Floats:
    """Weights of right answers, 1 on the mean, that give labels the shares they have in the dataset's test file."""
    shares = labels.map(prior / prior.sum()) / labels.map(labels.value_counts(normalize=True))
    return shares.to_numpy(float)


def _chance(labels: "pd.Series[str]", weights: Floats) -> float:
    """Quality of naming the most frequent label always."""
    return float((weights * (labels == labels.mode()[0])).mean())


def _runs(rows: pd.DataFrame, said: pd.DataFrame, weights: Floats | None) -> Iterator[tuple[tuple[str, Budget], Run]]:
    """Runs by method and budget; test examples in the order of their names, the same for all.

    Args:
        rows: of the case.
        said: by every fine-tune.
        weights: of right answers; ``None``: the loss counts.

    Raises:
        UserError: two runs of a case were tested on different examples.
    """
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
        run = Run(
            seeds=tuple(int(seed) for seed in group["seed"]),
            values=np.array(values, float),
            flops=float(group["flops"].mean()),
            validation_loss=float(group["validation_loss"].mean()),
            validation_accuracy=float(group["validation_accuracy"].mean()),
        )
        yield (str(method), str(budget)), run  # type: ignore[misc]  # the column holds these two words


def _choice(row: dict[Any, Any]) -> Choice:
    boundary = None if pd.isna(row["boundary"]) else int(row["boundary"])
    scores = tuple(json.loads(row["scores"])) if row["scores"] else ()
    deciding = row.get("deciding_share")
    return Choice(
        rule=row["rule"],
        selector=row["selector"],
        boundary=boundary,
        reason=row["reason"],
        scores=scores,
        deciding_share=0.0 if deciding is None or pd.isna(deciding) else float(deciding),
        plan=row["settings"],
    )


def _kept_settings(path: Path) -> dict[str, Any]:
    """Settings by their digests, as rows name them."""
    _require(path)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    return found


def _csv(path: Path, text: dict[str, type]) -> pd.DataFrame:
    """A table; of a column of texts what is empty, or was not kept when the table was made, is an empty text."""
    _require(path)
    try:
        table = pd.read_csv(path, dtype=text)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged table ({error})") from None
    return table.assign(**{name: "" for name in text if name not in table}).fillna(dict.fromkeys(text, ""))


def _optional(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table that a study may lack: empty where it does."""
    return _csv(path, {"label": str, "point": str}) if path.exists() else pd.DataFrame(columns=columns)


def _predictions(path: Path) -> pd.DataFrame:
    _require(path)
    try:
        table = pq.read_table(path).to_pandas()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged table ({error})") from None
    return table.assign(label=table.get("label")).astype({"point": str}).set_index("point").sort_index()


def _require(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; it is made by: {_MADE_BY}")
