"""A study's progress: its cases, the rows of its tables that still count, and the next jobs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from salf.files import code_hashes
from stages.study import harvest
from stages.study.agenda import PLAIN, FineTune, Known, Look, agenda, batches, coarse, method_of
from stages.study.description import Case, Description, Rule, Settings
from stages.study.settings import (
    AbsentError,
    Places,
    case_values,
    digest,
    method_settings,
    parameters,
    plan_settings,
    read_parameters,
    still_holds,
    training_settings,
)
from stages.study.tables import Row, Tables, records


class Setting(NamedTuple):
    """The settings that a case's jobs share: changed values, all parameters, and those that decide its results."""

    values: Settings
    params: Mapping[str, Any]
    training: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """Something to run: a plan to make, or fine-tunes of one case, seed and budget."""

    look: Look | None = None
    fine_tunes: tuple[FineTune, ...] = ()

    @property
    def case(self) -> Case:
        """Dataset and model."""
        return (self.look or self.fine_tunes[0]).case

    @property
    def name(self) -> str:
        """A digest of the work."""
        return digest([self.look.source, self.look.values] if self.look else [repr(one) for one in self.fine_tunes])

    @property
    def words(self) -> str:
        """A description for readers."""
        where = ", ".join(self.case)
        if self.look:
            return f"{where}: plan ({self.look.source})"
        first, methods = self.fine_tunes[0], ", ".join(one.method for one in self.fine_tunes)
        return f"{where}, seed {first.seed}: {methods} at equal {first.budget}"


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
            self._add(case)
        self.every_look = [look for case in self.settings for look in self._looks(case)]

    def _add(self, case: Case) -> None:
        try:
            values = case_values(self.description, case, self.places)
        except AbsentError as error:
            if str(error) not in self.absent:
                self.absent.append(str(error))
            return
        params = parameters(self.shipped, values)
        self.settings[case] = Setting(values, params, training_settings(params, self.places.project))

    def _looks(self, case: Case) -> Iterator[Look]:
        """One plan for every set of parameters that selectors need; the plain one gives the depth and comes first."""
        asked: dict[str, dict[str, Rule]] = {PLAIN: {}}
        for name, rule in self.description.rules.items():
            source = ",".join(f"{key}={value}" for key, value in sorted(rule.set.items()))
            asked.setdefault(source or PLAIN, {})[name] = rule
        for source, rules in asked.items():
            values = {**self.settings[case].values, **self.description.evidence, **next(iter(rules.values())).set}
            settings = plan_settings(parameters(self.shipped, values), self.places.project)
            yield Look(case, source, values, rules, settings)

    def looks(self) -> list[Look]:
        """Return the plans that are still to be made."""
        rows = {(Case(row["data_set"], row["model"]), row["rule"]): row for row in records(self.tables.choices)}

        def made(look: Look, name: str, rule: Rule) -> bool:
            row = rows.get((look.case, name), {"selector": ""})
            return row["selector"] == rule.selector and self._holds(row["settings"], look.settings)

        return [look for look in self.every_look if not all(made(look, *one) for one in look.rules.items())]

    def known(self) -> Known:
        """Return what the tables hold that counts under the present parameters."""
        rows = [row for row in records(self.tables.runs) if self._counts(row)]
        done = {fine_tune_of(row): row["learning_rate"] for row in rows}
        return Known(self._layers(), self._chosen(), done)

    def _counts(self, row: Row) -> bool:
        case = Case(row["data_set"], row["model"])
        if case not in self.settings or not self._holds(row["settings"], self.settings[case].training):
            return False
        own = method_settings(self.settings[case].params, row["method"], self.places.project)
        return not row["method_settings"] or self._holds(row["method_settings"], own)

    def _holds(self, name: str, now: Mapping[str, Any]) -> bool:
        """Whether the settings saved under a digest are the present ones."""
        return name in self.tables.settings and still_holds(self.tables.settings[name], now)

    def _layers(self) -> dict[Case, int]:
        rows = self.tables.choices[["data_set", "model", "layers"]].itertuples(index=False)
        return {case: int(layers) for *names, layers in rows if (case := Case(*names)) in self.settings}

    def _chosen(self) -> dict[Case, frozenset[int]]:
        """Boundaries that selectors choose; a selector that is a method is measured as that method."""
        found: dict[Case, set[int]] = {}
        for row in records(self.tables.choices):
            method = row["selector"] in self.description.methods
            if row["boundary"] is not None and row["rule"] in self.description.rules and not method:
                found.setdefault(Case(row["data_set"], row["model"]), set()).add(row["boundary"])
        return {case: frozenset(boundaries) for case, boundaries in found.items()}

    def wanted(self, known: Known) -> list[FineTune]:
        """Return unfinished fine-tunes, in order; those without rates wait for others."""
        return [one for one in agenda(self.description, list(self.settings), known) if one not in known.done]

    def ready(self, taken: Sequence[Job]) -> list[Job]:
        """Return what can start now, in order; ``taken`` jobs are running or have failed."""
        busy = {fine_tune for job in taken for fine_tune in job.fine_tunes}
        wanted = [one for one in self.wanted(self.known()) if one not in busy]
        parts = [[one for one in wanted if self._in_grid(one) == whether] for whether in (True, False)]
        jobs = [Job(look) for look in self.looks()]
        jobs += [Job(fine_tunes=batch) for part in parts for batch in batches(part, self.description.together)]
        names = {job.name for job in taken}
        return sorted((job for job in jobs if job.name not in names), key=self.rank)

    def rank(self, job: Job) -> tuple[int, ...]:
        """Return the place in the order: plain plans and coarse grids, model by model, seed by seed, then the rest."""
        models, cases = list(self.description.models), list(self.settings)
        model, place = models.index(job.case.model), cases.index(job.case)
        if job.look:
            return (0, model, 0, place) if job.look.source == PLAIN else (1, model, 0, 0)
        seed = self.description.seeds.index(job.fine_tunes[0].seed)
        return (0, model, seed, place) if self._in_grid(job.fine_tunes[0]) else (1, model, 1, 0)

    def _in_grid(self, one: FineTune) -> bool:
        """Whether a fine-tune is a point of its case's coarse grid."""
        rates = self.description.rates_of(one.case.model)
        grid = coarse(self.description.boundaries, rates, self._layers()[one.case])
        return one.budget == "epochs" and one.method == method_of(one.boundary) and one.boundary in grid

    def keep(self, job: Job, folder: Path, seconds: float) -> None:
        """Save what a job made in ``folder``; its seconds are shared equally among its fine-tunes."""
        if job.look:
            facts = {"settings": self.tables.keep_settings(job.look.settings), "seconds": seconds}
            self.tables.keep_choices([{**row, **facts} for row in harvest.choices(job.look, folder)])
            if job.look.source == PLAIN:
                self.tables.keep_traces(harvest.traces(job.look, folder))
            return
        found = []
        for one, (row, said) in zip(
            job.fine_tunes, harvest.results(folder, job.fine_tunes, self._facts(job.case)), strict=True
        ):
            own = method_settings(self.settings[job.case].params, one.method, self.places.project)
            kept = self.tables.keep_settings(own) if own else ""
            found.append(({**row, "method_settings": kept, "seconds_wall": seconds / len(job.fine_tunes)}, said))
        self.tables.keep_runs(found)

    def _facts(self, case: Case) -> Row:
        """Columns that all rows of a case have in common."""
        data_set = self.description.data_sets[case.data_set]
        return {
            "group": data_set.group or case.data_set,
            "measure": data_set.measure,
            "settings": self.tables.keep_settings(self.settings[case].training),
            "code": digest(sorted(code_hashes().values())),
            **harvest.where(),
            "layers": self._layers()[case],
        }

    def outlook(self) -> str:
        """Describe what is finished and what is left."""
        known, looks = self.known(), self.looks()
        left = self.wanted(known)
        parts = [f"{len(self.settings)} pairs of dataset and model", f"{len(known.done)} fine-tunes finished"]
        parts += [f"{len(looks)} plans to make, which may ask for more fine-tunes"] * bool(looks)
        parts += [f"{len(left)} fine-tunes left"]
        parts += [f"left out: {', '.join(self.absent)}"] * bool(self.absent)
        return f"study: {', '.join(parts)}"


def fine_tune_of(row: Row) -> FineTune:
    """Return the fine-tune whose result a row is."""
    rates = tuple(map(float, row["rates"].split()))
    boundary = row["boundary"] if row["method"].startswith("freeze-") else 0
    return FineTune(Case(row["data_set"], row["model"]), row["seed"], row["method"], boundary, row["budget"], rates)
