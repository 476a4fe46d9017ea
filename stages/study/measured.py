"""What a study measured, case by case: quality of every test example under every fine-tune."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.common.command import UserError

Floats = NDArray[np.floating[Any]]
Budget = Literal["epochs", "compute"]
FULL: Final = "full"
_MADE_BY: Final = "python -m flows.study"


@dataclass(frozen=True)
class Run:
    """One method's fine-tunes, a seed each.

    Attributes:
        seeds: the seeds.
        values: quality of every test example [seeds, examples]: 1 for a right answer, or minus its loss; between two
            boundaries a mixture of theirs.
        flops: counted, mean over seeds.
        validation_loss: mean over seeds.
    """

    seeds: tuple[int, ...]
    values: Floats
    flops: float
    validation_loss: float


@dataclass(frozen=True)
class Choice:
    """What a rule chooses; no boundary where its evidence was absent.

    Attributes:
        scores: what it predicts for boundaries 0..L; empty where it predicts nothing.
        deciding_share: operations of the fine-tunes by which it decides, as a share of full fine-tuning's.
    """

    rule: str
    selector: str
    boundary: int | None
    reason: str
    scores: tuple[float | None, ...]
    deciding_share: float = 0.0


@dataclass(frozen=True)
class Case:
    """A data set with a model.

    Attributes:
        group: data sets of one group are left out together.
        measure: ``accuracy`` or ``loss``.
        runs: by method and budget.
        boundaries: method → boundary, for those that freeze up to a layer.
        between: the same for boundaries that rules choose and nobody measured: their runs mix their neighbours'.
    """

    data_set: str
    group: str
    model: str
    measure: str
    layers: int
    runs: dict[tuple[str, Budget], Run]
    boundaries: dict[str, int]
    between: dict[str, int]
    choices: tuple[Choice, ...]

    @property
    def scale(self) -> float:
        """Accuracies are reported in points of a hundred, losses in nats."""
        return 100.0 if self.measure == "accuracy" else 1.0

    def curve(self) -> dict[int, str]:
        """Boundary → method, for those measured at equal epochs, ascending."""
        measured = {method: b for method, b in self.boundaries.items() if method not in self.between}
        found = {b: method for method, b in measured.items() if (method, "epochs") in self.runs}
        return dict(sorted(found.items()))

    def quality(self, method: str, budget: Budget = "epochs") -> float:
        """Mean of a method over seeds and examples, in points or as minus nats."""
        return self.scale * float(self.runs[method, budget].values.mean())

    def at_equal_compute(self, method: str) -> tuple[float, float] | None:
        """Mean quality of a method at full fine-tuning's operations, and of full fine-tuning, over their common seeds.

        ``None``: they have none.
        """
        longer, full = self.runs.get((method, "compute")), self.runs[FULL, "epochs"]
        common = [seed for seed in longer.seeds if seed in full.seeds] if longer else []
        if longer is None or not common:
            return None
        own, theirs = (run.values[[run.seeds.index(seed) for seed in common]].mean() for run in (longer, full))
        return float(own), float(theirs)

    def cost_share(self, method: str) -> float:
        """Counted operations of a method's fine-tune at equal epochs as a share of full fine-tuning's."""
        return self.runs[method, "epochs"].flops / self.runs[FULL, "epochs"].flops


@dataclass(frozen=True)
class Study:
    """All cases whose full fine-tuning was measured, and what the numbers come from.

    Attributes:
        runs: the fine-tunes that are read.
        measured: how many there are; those that make no whole table of boundaries and seeds are not read.
    """

    cases: tuple[Case, ...]
    runs: pd.DataFrame
    measured: int
    intervals: pd.DataFrame


def read_study(folder: Path) -> Study:
    """Read the tables of a study.

    Of every case the rows of its last settings count; rows of earlier ones are another study's. All boundaries
    of a case are read with the same seeds, those that keep most fine-tunes: one boundary's lucky seed shall not
    be held against others that lack it.

    Raises:
        UserError: a table is missing or damaged, or no case has full fine-tuning to compare with.
    """
    runs = _csv(folder / "runs.csv", {"method_settings": str, "settings": str})
    choices = _csv(folder / "choices.csv", {"reason": str, "scores": str, "selector": str})
    intervals = _csv(folder / "intervals.csv", {})
    said = _predictions(folder / "predictions.parquet")
    last = runs.groupby(["data_set", "model"])["settings"].transform("last")
    present = runs[runs["settings"] == last]
    runs = _complete(present)
    cases = tuple(
        _case(rows, choices, said) for _, rows in runs.groupby(["data_set", "model"], sort=False) if _has_full(rows)
    )
    if not cases:
        raise UserError(f"{folder}: no data set's full fine-tuning is measured yet; run: {_MADE_BY}")
    return Study(cases, runs, len(present), intervals)


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


def _case(rows: pd.DataFrame, choices: pd.DataFrame, said: pd.DataFrame) -> Case:
    first = rows.iloc[0]
    mine = choices[(choices["data_set"] == first["data_set"]) & (choices["model"] == first["model"])]
    freezes = rows[_at_boundary(rows)]
    case = Case(
        data_set=first["data_set"],
        group=first["group"],
        model=first["model"],
        measure=first["measure"],
        layers=int(first["layers"]),
        runs=dict(_runs(rows, said, first["measure"])),
        boundaries=dict(zip(freezes["method"], freezes["boundary"].astype(int).tolist(), strict=True)),
        between={},
        choices=(),
    )
    return with_choices(case, [_choice(row) for row in mine.to_dict("records") if row["selector"]])


def with_choices(case: Case, choices: Sequence[Choice]) -> Case:
    """The case with what these rules choose; boundaries that nobody measured are read between their neighbours."""
    runs = {key: run for key, run in case.runs.items() if key[1] != "epochs" or key[0] not in case.between}
    plain = replace(case, runs=runs, between={}, choices=tuple(choices))
    wanted = sorted({choice.boundary for choice in choices if choice.boundary is not None})
    found = {b: run for b in wanted if (run := _between(plain, b))}
    mixed: dict[tuple[str, Budget], Run] = {(f"freeze-{b}", "epochs"): run for b, run in found.items()}
    return replace(plain, runs={**runs, **mixed}, between={f"freeze-{b}": b for b in found})


def _between(case: Case, boundary: int) -> Run | None:
    """What a boundary that was not measured comes to, by its measured neighbours; ``None`` where that says nothing.

    Of every example the chance of a right answer is taken to change evenly from the one to the other. Not towards
    boundary L: there no layer trains, and quality falls off a cliff.
    """
    curve = case.curve()
    below = max((b for b in curve if b < boundary), default=None)
    above = min((b for b in curve if b > boundary), default=case.layers)
    if boundary in curve or below is None or above == case.layers:
        return None
    low, high = case.runs[curve[below], "epochs"], case.runs[curve[above], "epochs"]
    share = (boundary - below) / (above - below)

    def mixed(one: Any, other: Any) -> Any:
        return (1 - share) * one + share * other

    return Run(
        seeds=low.seeds,
        values=mixed(low.values, high.values),
        flops=mixed(low.flops, high.flops),
        validation_loss=mixed(low.validation_loss, high.validation_loss),
    )


def _runs(rows: pd.DataFrame, said: pd.DataFrame, measure: str) -> Iterator[tuple[tuple[str, Budget], Run]]:
    """Runs by method and budget; test examples in the order of their names, the same for all.

    Raises:
        UserError: two runs of a case were tested on different examples.
    """
    examples: list[str] | None = None
    for (method, budget), group in rows.sort_values("seed", kind="stable").groupby(["method", "budget"], sort=False):
        values = []
        for point in group["point"]:
            mine = said.loc[[point]].sort_values("example_id") if point in said.index else said.iloc[:0]
            names = list(mine["example_id"])
            if names != (examples := examples or names):
                where = f"{group.iloc[0]['data_set']}, {group.iloc[0]['model']}: {method}"
                raise UserError(f"{where}: its test examples differ from the other methods'; run again: {_MADE_BY}")
            values.append(mine["correct"] if measure == "accuracy" else -mine["loss"])
        run = Run(
            seeds=tuple(int(seed) for seed in group["seed"]),
            values=np.array(values, float),
            flops=float(group["flops"].mean()),
            validation_loss=float(group["validation_loss"].mean()),
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
    )


def _csv(path: Path, text: dict[str, type]) -> pd.DataFrame:
    """A table; an empty field of a column of texts is an empty text."""
    _require(path)
    try:
        table = pd.read_csv(path, dtype=text)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged table ({error})") from None
    return table.fillna(dict.fromkeys(text, ""))


def _predictions(path: Path) -> pd.DataFrame:
    _require(path)
    try:
        table = pq.read_table(path).to_pandas()
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged table ({error})") from None
    return table.astype({"point": str}).set_index("point").sort_index()


def _require(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; it is made by: {_MADE_BY}")
