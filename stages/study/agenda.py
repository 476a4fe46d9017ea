"""Decides a study's next fine-tunes from its tables alone, so that it resumes at any point.

Order: for every seed the boundaries of every case, then for every seed the methods in addition.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from salf.methods import RACE, frozen_by_name
from stages.study.description import FULL, HALF, MOST_RATE, Budget, Case, Description, Rates


@dataclass(frozen=True)
class FineTune:
    """One fine-tune that the study wants.

    The budget ``compute`` gives it as many epochs as full fine-tuning's FLOPs allow. ``rates`` is its grid, widened
    ones last; empty until another fine-tune has decided the rate.
    """

    case: Case
    seed: int
    method: str
    budget: Budget
    rates: tuple[float, ...]

    @property
    def words(self) -> str:
        """A description for readers."""
        return f"{', '.join(self.case)}, seed {self.seed}: {self.method} at equal {self.budget}"


@dataclass(frozen=True)
class Known:
    """Finished fine-tunes with the rate that each took."""

    done: Mapping[FineTune, float]

    @cached_property
    def grids(self) -> Mapping[FineTune, list[FineTune]]:
        """Finished fine-tunes by everything but their rates."""
        found: dict[FineTune, list[FineTune]] = {}
        for one in self.done:
            found.setdefault(replace(one, rates=()), []).append(one)
        return found


def method_of(boundary: int) -> str:
    """The method that freezes layers 1..boundary."""
    return f"freeze-{boundary}" if boundary else FULL


def agenda(description: Description, cases: Sequence[Case], known: Known) -> list[FineTune]:
    """Return all fine-tunes that are wanted as far as is known yet, finished or not, the most informative first."""
    wanted = [
        _wanted(description, case, seed, method_of(boundary), known)
        for seed in description.seeds
        for case in cases
        for boundary in grid_of(description, case)
    ]
    for seed in description.seeds:
        for case in cases:
            for method, arm in description.methods.items():
                if arm.includes(case, seed):
                    wanted += [_wanted(description, case, seed, method, known, budget) for budget in arm.budgets]
    return list(dict.fromkeys(wanted))


def grid_of(description: Description, case: Case) -> list[int]:
    """Return the boundaries to measure on a case; the first of each region of rates leads: others take its rate."""
    rates, layers = description.rates_of(case.model), description.models[case.model].layers
    grid = sorted({math.ceil(share * layers) for share in description.boundaries_of(case.data_set)})
    leaders = {region(rates, boundary / layers): boundary for boundary in reversed(grid)}
    return sorted(leaders.values()) + [boundary for boundary in grid if boundary not in leaders.values()]


def region(rates: Rates, share: float) -> float:
    """Return the start of the region of learning rates that a boundary lies in."""
    return max(start for start in rates if start <= share)


def widened(rates: Sequence[float], best: float) -> float | None:
    """Return the next rate beyond the best one at the edge of a grid; ``None``: there is none to try."""
    grid = sorted(rates)
    if len(grid) == 1 or best not in (grid[0], grid[-1]):
        return None
    end, neighbour = (grid[-1], grid[-2]) if best == grid[-1] else (grid[0], grid[1])
    beyond = float(f"{end * end / neighbour:.2g}")
    return beyond if beyond <= MOST_RATE and beyond not in rates else None


def _wanted(
    description: Description, case: Case, seed: int, method: str, known: Known, budget: Budget = "epochs"
) -> FineTune:
    """A method's fine-tune with its rates: its grid if it is the one that is tuned, else the rate that won there."""
    wanted = FineTune(case, seed, method, budget, ())
    if description.trained(method) == RACE:
        return replace(wanted, rates=(0.0,))  # in the place of rates: a race has its own
    tuned = _tuned(description, case, method, known)
    if wanted == replace(tuned, rates=()):
        return tuned
    return replace(wanted, rates=(known.done[tuned],) if tuned in known.done else ())


def _tuned(description: Description, case: Case, name: str, known: Known) -> FineTune:
    """The fine-tune that decides a method's rate, with its grid so far: of a boundary, its region's first one."""
    arm = description.methods.get(name)
    if arm and arm.rate_of:
        return _tuned(description, case, arm.rate_of, known)
    regions = description.rates_of(case.model)
    if arm:
        first, rates = (arm.seeds or description.seeds)[0], arm.rates or regions[0]
        widen = description.widen if arm.widen is None else arm.widen
        return _widest(FineTune(case, first, name, arm.budgets[0], tuple(rates)), widen, known)
    layers = description.models[case.model].layers
    boundary = layers // 2 if name == HALF else frozen_by_name(name) or 0
    here = region(regions, boundary / layers)
    leader = next((one for one in grid_of(description, case) if region(regions, one / layers) == here), boundary)
    begun = FineTune(case, description.seeds[0], method_of(leader), "epochs", tuple(regions[here]))
    return _widest(begun, description.widen, known)


def _widest(begun: FineTune, most: int, known: Known) -> FineTune:
    """The fine-tune with its grid so far: widened by a rate, ``most`` times, as long as the one at its edge wins."""
    size = len(begun.rates)
    ended = [one for one in known.grids.get(replace(begun, rates=()), []) if one.rates[:size] == begun.rates]
    if not ended:
        return begun
    done = max(ended, key=lambda one: len(one.rates))
    beyond = widened(done.rates, known.done[done])
    if beyond is None or len(done.rates) >= size + most:
        return done
    return replace(done, rates=(*done.rates, beyond))
