"""How long a study will take: from what one machine has measured, and from nothing else."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from flows.study.agenda import Case, FineTune
from flows.study.progress import Look
from flows.study.tables import Row

_FREE: Final = 0.9  # about what freezing all layers saves of a full fine-tune: the frozen pass stays


@dataclass(frozen=True)
class Machine:
    """Whose seconds count."""

    name: str
    cores: int

    def __str__(self) -> str:
        return f"{self.name} with {self.cores} {'cores' if self.cores > 1 else 'core'}"

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Machine":
        """By a row's columns ``machine`` and ``cores``."""
        return cls(facts["machine"], facts["cores"])


def best_known(rows: Sequence[Row], here: Machine) -> Machine:
    """Here, where anything was measured here or nothing anywhere; else the machine that has measured most."""
    counts = Counter(Machine.of(row) for row in rows if row["seconds_wall"])
    return here if here in counts or not counts else counts.most_common(1)[0][0]


def units(fine_tune: FineTune, layers: int) -> float:
    """About how many full fine-tunes one is worth, every learning rate that it is trained at counted."""
    share = 1.0 if fine_tune.budget == "compute" else 1 - _FREE * fine_tune.boundary / layers
    return share * max(1, len(fine_tune.new_rates))


class Forecast:
    """Seconds per unit, by case and by model, and per plan, by model and by its first rule, as one machine took them.

    Args:
        runs: the study's fine-tunes.
        choices: the study's choices, a row per rule.
        machine: what others measured is left aside.
    """

    def __init__(self, runs: Sequence[Row], choices: Sequence[Row], machine: Machine) -> None:
        mine = [row for row in runs if row["seconds_wall"] and Machine.of(row) == machine]
        self.measured = len(mine)
        self._by_case: dict[Case, list[float]] = {}
        self._by_model: dict[str, list[float]] = {}
        for row in mine:
            case = Case(row["data_set"], row["model"])
            rates = tuple(map(float, row["rates"].split()))
            done = FineTune(case, row["seed"], row["method"], row["boundary"], row["budget"], rates)
            each = row["seconds_wall"] / units(done, row["layers"])
            self._by_case.setdefault(case, []).append(each)
            self._by_model.setdefault(case.model, []).append(each)
        self._by_rule: dict[tuple[str, str], list[float]] = {}
        for row in choices:
            if row["seconds"] is not None and Machine.of(row) == machine:
                self._by_rule.setdefault((row["model"], row["rule"]), []).append(row["seconds"])

    def seconds(self, fine_tunes: Sequence[FineTune], layers: Mapping[Case, int]) -> float | None:
        """Of all of them, one after the other; ``None``: nothing was measured with one of the models."""
        found = 0.0
        for fine_tune in fine_tunes:
            known = self._by_case.get(fine_tune.case) or self._by_model.get(fine_tune.case.model)
            if not known:
                return None
            found += fmean(known) * units(fine_tune, layers[fine_tune.case])
        return found

    def of_plans(self, looks: Sequence[Look]) -> float | None:
        """Of all these plans; ``None``: for one of them nothing was measured with its model and its first rule."""
        known = [self._by_rule.get((look.case.model, look.names[0]), []) for look in looks]
        return sum(map(fmean, known)) if all(known) else None
