"""How long a study will take: from what this machine has measured, and from nothing else."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from flows.study.agenda import Case, FineTune
from flows.study.tables import Row

_FREE: Final = 0.9  # about what freezing all layers saves of a full fine-tune: the frozen pass stays


def units(fine_tune: FineTune, layers: int) -> float:
    """About how many full fine-tunes one is worth, its whole grid of learning rates counted."""
    share = 1.0 if fine_tune.budget == "compute" else 1 - _FREE * fine_tune.boundary / layers
    return share * max(1, len(fine_tune.rates))


class Forecast:
    """Seconds per unit, by case and by model, as measured here.

    Args:
        rows: the study's runs.
        here: ``machine`` and ``cores`` of this machine; what others measured is left aside.
    """

    def __init__(self, rows: Sequence[Row], here: Mapping[str, object]) -> None:
        mine = [row for row in rows if row["seconds_wall"] and all(row[name] == value for name, value in here.items())]
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

    def seconds(self, fine_tunes: Sequence[FineTune], layers: Mapping[Case, int]) -> float | None:
        """Of all of them, one after the other; ``None``: nothing was measured with one of the models."""
        found = 0.0
        for fine_tune in fine_tunes:
            known = self._by_case.get(fine_tune.case) or self._by_model.get(fine_tune.case.model)
            if not known:
                return None
            found += fmean(known) * units(fine_tune, layers[fine_tune.case])
        return found
