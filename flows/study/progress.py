"""Where a study stands: its cases, what its tables hold that still counts, and what is to be done next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flows.study.agenda import Case, FineTune, Known, Result, agenda, batches, coarse, is_boundary
from flows.study.description import Description, Rule, Settings
from flows.study.settings import (
    AbsentError,
    Places,
    check,
    code_version,
    method_settings,
    overrides,
    parameters,
    plan_settings,
    read_parameters,
    training_settings,
)
from flows.study.tables import Row, Tables
from stages.common.kept_settings import still_holds

PLAIN: Final = "plain"  # the parameters as they are: their plan tells the model's depth


@dataclass(frozen=True)
class Look:
    """A plan to be made: what the rules of the same parameters choose.

    Attributes:
        source: a word for those parameters.
        values: all parameters that are set.
        rules: none for the reference, whose trace alone is of interest; it keeps a row of its own all the same.
        settings: what decides the plan.
    """

    case: Case
    source: str
    values: Settings
    rules: Mapping[str, Rule]
    settings: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of its rows in the table of choices."""
        return list(self.rules) or [f"({self.source})"]


@dataclass(frozen=True)
class Setting:
    """What a case's experiments have in common.

    Attributes:
        values: parameters that are set.
        params: all parameters, with those.
        training: what decides its fine-tunes' results.
    """

    values: Settings
    params: Mapping[str, Any]
    training: Mapping[str, Any]


class Progress:
    """A study on its way.

    Args:
        description: what is wanted.
        places: where things lie.
        tables: what is there.
        same_code: results of another version of the stages do not count.

    Attributes:
        failed: fine-tunes that were begun and did not come to their end; they are begun again by the next call.

    Raises:
        StudyError: params.yaml has no place for a value of the description.
    """

    def __init__(self, description: Description, places: Places, tables: Tables, same_code: bool) -> None:
        self.description, self.places, self.tables, self.same_code = description, places, tables, same_code
        self.code = code_version(places.project)
        self.absent: list[str] = []
        self.failed: set[FineTune] = set()
        self.settings: dict[Case, Setting] = {}
        self._shipped = read_parameters(places.project)
        for case in _cases(description):
            self._add(case)
        for values in [description.evidence, description.reference or {}, *(r.set for r in description.rules.values())]:
            check(places.project, values)
        self.every_look = [look for case in self.settings for look in self._looks(case)]

    @property
    def cases(self) -> list[Case]:
        """Those whose files are there."""
        return list(self.settings)

    def looks(self) -> list[Look]:
        """Plans that are still to be made."""
        kept = self.tables.settings
        rows = {(row["data_set"], row["model"], row["rule"]): row for row in self.tables.choices}
        return [look for look in self.every_look if not _made(look, rows, kept)]

    def known(self) -> Known:
        """What the tables hold that counts under the present parameters."""
        rows = self._rows()
        done = {one: Result(row["learning_rate"], row["validation_loss"]) for one, row in rows.items()}
        layers = self._layers()
        chosen = {case: frozenset(_boundaries(self.tables.choices, case, self.description)) for case in layers}
        points = {row["point"]: one for one, row in rows.items()}
        own = {
            (points[row["point"]], row["learning_rate"])
            for row in self.tables.rates
            if row["point"] in points and not row["source"]
        }
        return Known(layers, chosen, done, frozenset(self.failed), frozenset(own))

    def before(self, fine_tune: FineTune) -> Row | None:
        """The best of the rates that were tried before; ``None``: there were none."""
        return self._rows()[replace(fine_tune, rates=fine_tune.rates[: fine_tune.tried])] if fine_tune.tried else None

    def wanted(self, known: Known) -> list[FineTune]:
        """Fine-tunes that are not there yet, in order; those without rates wait for others."""
        return [fine_tune for fine_tune in agenda(self.description, self.cases, known) if fine_tune not in known.done]

    def next_batches(self, wanted: Sequence[FineTune]) -> list[tuple[FineTune, ...]]:
        """What can be started now, in order."""
        grid, others = list[FineTune](), list[FineTune]()
        for fine_tune in wanted:
            (grid if self._in_grid(fine_tune) else others).append(fine_tune)
        return [*batches(grid, self.description.together), *batches(others, self.description.together)]

    def rank(self, work: Look | Sequence[FineTune]) -> tuple[int, ...]:
        """Place in the order: plain plans and coarse grids, model by model, seed by seed; then what makes them finer.

        Of that, too, model by model: first the other plans, since they say which boundaries are wanted.
        """
        case, seeds = work.case if isinstance(work, Look) else work[0].case, self.description.seeds
        model, place = list(self.description.models).index(case.model), self.cases.index(case)
        if isinstance(work, Look):
            return (0, model, 0, place) if work.source == PLAIN else (1, model, 0, 0)
        return (0, model, seeds.index(work[0].seed), place) if self._in_grid(work[0]) else (1, model, 1, 0)

    def facts(self, case: Case) -> Row:
        """Columns that all rows of a case have in common."""
        data_set = self.description.data_sets[case.data_set]
        return {
            "group": data_set.group or case.data_set,
            "measure": data_set.measure,
            "settings": self.tables.keep_settings(self.settings[case].training),
            "code": self.code,
        }

    def method_facts(self, fine_tune: FineTune) -> Row:
        """The one column that a method's own parameters decide."""
        own = self._own(fine_tune.case, fine_tune.method)
        return {"method_settings": self.tables.keep_settings(own) if own else ""}

    def _rows(self) -> dict[FineTune, Row]:
        """Rows that count under the present parameters."""
        kept = self.tables.settings
        return {fine_tune_of(row): row for row in self.tables.runs if self._counts(row, kept)}

    def _layers(self) -> dict[Case, int]:
        found = {Case(row["data_set"], row["model"]): row["layers"] for row in self.tables.choices}
        return {case: layers for case, layers in found.items() if case in self.settings}

    def _in_grid(self, one: FineTune) -> bool:
        """Whether a fine-tune is a point of its case's coarse grid."""
        if one.budget != "epochs" or not is_boundary(one):
            return False
        layers = self._layers()[one.case]
        return one.boundary in coarse(self.description.boundaries, self.description.rates_of(one.case.model), layers)

    def _add(self, case: Case) -> None:
        try:
            values = overrides(self.description, case, self.places)
        except AbsentError as error:
            if str(error) not in self.absent:  # one missing folder is told once, whatever was to be done with it
                self.absent.append(str(error))
            return
        check(self.places.project, values)
        params = parameters(self._shipped, values)
        self.settings[case] = Setting(values, params, training_settings(params, self.places.project))

    def _looks(self, case: Case) -> list[Look]:
        """One look for every set of parameters that rules ask for; the plain one gives the layers and comes first."""
        asked: dict[str, tuple[Settings, dict[str, Rule]]] = {"": ({}, {})}
        for name, rule in self.description.rules.items():
            source = ",".join(f"{key}={value}" for key, value in sorted(rule.set.items()))
            asked.setdefault(source, (rule.set, {}))[1][name] = rule
        if self.description.reference is not None:
            asked["reference"] = (self.description.reference, {})
        looks = []
        for source, (more, rules) in asked.items():
            values = {**self.settings[case].values, **self.description.evidence, **more}
            settings = plan_settings(parameters(self._shipped, values), self.places.project)
            looks.append(Look(case, source or PLAIN, values, rules, settings))
        return looks

    def _counts(self, row: Row, kept: Mapping[str, Any]) -> bool:
        case = Case(row["data_set"], row["model"])
        if case not in self.settings or (self.same_code and row["code"] != self.code):
            return False
        return still_holds(kept.get(row["settings"], row), self.settings[case].training) and still_holds(
            kept.get(row["method_settings"], {}), self._own(case, row["method"])
        )

    def _own(self, case: Case, method: str) -> dict[str, Any]:
        return method_settings(self.settings[case].params, method, self.places.project)


def fine_tune_of(row: Row) -> FineTune:
    """The fine-tune that a row is the result of."""
    rates = tuple(map(float, row["rates"].split()))
    boundary = row["boundary"] if row["method"].startswith("freeze-") else 0
    return FineTune(Case(row["data_set"], row["model"]), row["seed"], row["method"], boundary, row["budget"], rates)


def _cases(description: Description) -> list[Case]:
    """Model by model, so that the first one is studied on every data set first."""
    return [
        Case(data_set, name)
        for name, model in description.models.items()
        for data_set in description.data_sets
        if model.data_sets is None or data_set in model.data_sets
    ]


def _boundaries(choices: Sequence[Row], case: Case, description: Description) -> set[int]:
    """Boundaries that rules choose; a rule that is a method of its own is measured as such."""
    return {
        row["boundary"]
        for row in choices
        if Case(row["data_set"], row["model"]) == case
        and row["boundary"] is not None
        and row["rule"] in description.rules
        and row["selector"] not in description.methods
    }


def _made(look: Look, rows: Mapping[tuple[str, str, str], Row], kept: Mapping[str, Any]) -> bool:
    """Whether the tables hold what this look would show, made with the same settings."""
    found = [rows.get((look.case.data_set, look.case.model, name)) for name in look.names]
    asked = [rule.selector for rule in look.rules.values()] or [""]
    return all(
        row is not None and row["selector"] == selector and still_holds(kept.get(row["settings"], row), look.settings)
        for row, selector in zip(found, asked, strict=True)
    )
