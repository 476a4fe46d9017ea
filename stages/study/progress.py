"""A study's progress: its cases, the rows of its tables that still count, the next fine-tunes, and their rows."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from salf.files import code_hashes, read_json
from salf.ledger import Machine
from salf.metrics import Metrics, RunMetrics
from salf.records import FineTuneClock, FineTuneRecord
from stages.study.agenda import FineTune, Known, agenda
from stages.study.description import Case, Description, Settings
from stages.study.settings import (
    AbsentError,
    Places,
    case_values,
    digest,
    method_settings,
    parameters,
    read_parameters,
    still_holds,
    training_settings,
)
from stages.study.tables import Row, Tables, records

TEXTS = "reports/texts.json"  # of a job: perplexities on texts


class Setting(NamedTuple):
    """The settings of a case: changed values, all parameters, and those that decide its results."""

    values: Settings
    params: Mapping[str, Any]
    training: Mapping[str, Any]


class Progress:
    """A study on its way; ``absent`` names what is missing on this machine, ``settings`` belong to the other cases.

    Raises:
        UserError: the description sets a parameter that params.yaml does not have.
    """

    def __init__(self, description: Description, places: Places, tables: Tables) -> None:
        self.description, self.places, self.tables = description, places, tables
        self.absent: list[str] = []
        self.settings: dict[Case, Setting] = {}
        self.shipped = read_parameters(places.project)
        for case in description.cases():
            try:
                values = case_values(description, case, places)
            except AbsentError as error:
                self.absent += [str(error)] * (str(error) not in self.absent)
                continue
            params = parameters(self.shipped, values)
            self.settings[case] = Setting(values, params, training_settings(params, places.project))

    def known(self) -> Known:
        """Return what the tables hold that counts under the present parameters."""
        rows = records(self.tables.runs)
        return Known({fine_tune_of(row): row["learning_rate"] for row in rows if self._counts(row)})

    def _counts(self, row: Row) -> bool:
        case = Case(row["data_set"], row["model"])
        if case not in self.settings or not self._holds(row["settings"], self.settings[case].training):
            return False
        return not row["method_settings"] or self._holds(row["method_settings"], self._own(case, row["method"]))

    def _own(self, case: Case, method: str) -> dict[str, Any]:
        return method_settings(self.shipped, self.settings[case].values, method, self.description.arm(method))

    def _holds(self, name: str, now: Mapping[str, Any]) -> bool:
        """Whether the settings saved under a digest are the present ones."""
        return name in self.tables.settings and still_holds(self.tables.settings[name], now)

    def wanted(self, known: Known) -> list[FineTune]:
        """Return unfinished fine-tunes, in order; those without rates wait for others."""
        return [one for one in agenda(self.description, list(self.settings), known) if one not in known.done]

    def ready(self, taken: Sequence[FineTune]) -> list[FineTune]:
        """Return what can start now, in order; ``taken`` ones are running or have failed."""
        return [one for one in self.wanted(self.known()) if one.rates and one not in taken]

    def keep(self, one: FineTune, folder: Path, seconds: float) -> None:
        """Save what a job made in ``folder`` in that many seconds."""
        row, said = result(folder, one, self.description.trained(one.method))
        data_set, own = self.description.data_sets[one.case.data_set], self._own(one.case, one.method)
        here = Machine.here()
        facts = {
            "group": data_set.group or one.case.data_set,
            "measure": data_set.measure,
            "settings": self.tables.keep_settings(self.settings[one.case].training),
            "method_settings": self.tables.keep_settings(own) if own else "",
            "code": self._code,
            "machine": ", ".join(here.accelerators) or here.cpu or here.system,  # no name, no path
            "cores": here.cores,
            "layers": self.description.models[one.case.model].layers,
            "seconds_wall": seconds,
        }
        self.tables.keep_run({**facts, **row}, said)

    @cached_property
    def _code(self) -> str:
        return digest(sorted(code_hashes().values()))

    def outlook(self) -> str:
        """Describe what is finished and what is left, method by method."""
        known = self.known()
        wanted = self.wanted(known)
        parts = [f"{len(self.settings)} pairs of dataset and model", f"{len(known.done)} fine-tunes finished"]
        parts += [f"{len(wanted)} fine-tunes left"]
        parts += [f"left out: {', '.join(self.absent)}"] * bool(self.absent)
        left: dict[str, dict[Case, list[str]]] = {}
        for one in wanted:
            method = one.method if one.budget == "epochs" else f"{one.method} at equal compute"
            left.setdefault(method, {}).setdefault(one.case, []).append(str(one.seed))
        lines = [
            f"  {method}: " + ", ".join(f"{case.data_set} {' '.join(seeds)}" for case, seeds in cases.items())
            for method, cases in left.items()
        ]
        return "\n".join([f"study: {', '.join(parts)}", *lines])


def fine_tune_of(row: Row) -> FineTune:
    """Return the fine-tune whose result a row is."""
    rates = tuple(map(float, row["rates"].split()))
    return FineTune(Case(row["data_set"], row["model"]), row["seed"], row["method"], row["budget"], rates)


def result(folder: Path, one: FineTune, trained: str) -> tuple[Row, pd.DataFrame]:
    """Return the row and the predictions of a fine-tune that the job ran as the method ``trained``.

    Under ``more`` are what becomes rows of other tables, by their names: the outcomes of its grid, the scores of every
    entry of ``finetune.keep``, and perplexities on texts.
    """
    name = f"{trained}-seed{one.seed}"
    metrics = Metrics.load(folder / "reports/metrics.json")
    columns = ["run", "example_id", "label", "correct", "loss"]
    said = pd.read_parquet(folder / "reports/predictions.parquet", columns=columns, filters=[("run", "==", name)])
    run = FineTuneRecord.load(folder / f"data/models/{name}")
    clock = FineTuneClock.load(folder / f"reports/runs/{name}.json")
    row = {**one.case._asdict(), "method": one.method, "budget": one.budget, "rates": " ".join(map(repr, one.rates))}
    row |= _learned(run, metrics.runs[name], metrics.quality)
    row |= {"device": clock.machine.device, "dtype": clock.machine.dtype}
    row["seconds"] = clock.seconds_training + clock.seconds_cache  # of the winning rate, with its frozen layers
    more = {"rates": _outcomes(run, row) if len(one.rates) > 1 else [], "forgetting": _forgotten(folder, name)}
    more["kept"] = [each.model_dump() for each in metrics.runs[name].kept]
    return {**row, "more": more}, said.drop(columns="run")


def _forgotten(folder: Path, name: str) -> list[Row]:
    """The perplexity on every text, and the base's, of a fine-tune whose job measured that."""
    found = read_json(folder / TEXTS)["models"] if (folder / TEXTS).exists() else {}
    return [
        {"text": text, "before": found["base"][text]["perplexity"], "after": one["perplexity"], "tokens": one["tokens"]}
        for text, one in found.get(name, {}).items()
    ]


def _learned(run: FineTuneRecord, scored: RunMetrics, quality: str) -> Row:
    same = ("seed", "boundary", "epochs", "learning_rate", "validation_examples", "flops")
    scores = {name: score.value for name, score in scored.scores.items()}
    return {
        **{name: getattr(run, name) for name in (*same, "trained_parameters")},
        "quality": scores[quality],
        "macro_f1": scores.get("macro_f1"),
        "loss": scores["loss"],
        "validation_loss": run.validated.validation_loss,
        "validation_accuracy": run.validated.validation_accuracy,
        "test_examples": scored.n,
        "data_sha256": run.data_sha256["train"],
        "model_sha256": run.base_sha256,
    }


def _outcomes(run: FineTuneRecord, row: Row) -> list[Row]:
    """The outcome of every rate at which training did not diverge; the winner's test results are those of evaluate."""
    won = {"test_loss": row["loss"], "test_accuracy": row["quality"]}
    won |= {name: row[name] for name in ("validation_loss", "validation_accuracy")}
    return [
        {**one.model_dump(), "learning_rate": one.rate, **(won if one.rate == run.learning_rate else {})}
        for one in run.grid
        if one.validation_loss is not None
    ]
