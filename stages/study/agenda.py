"""Decides a study's next fine-tunes from its tables alone, so that it resumes at any point.

Order: the coarse grid of boundaries for every seed and dataset, then the boundaries that selectors choose; last,
methods without a boundary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Final

from salf.methods import RACE
from stages.study.description import FULL, MOST_RATE, Arm, Budget, Case, Description, Rates, Rule, Settings

_RACED: Final = (0.0,)  # in the place of the rates of a race, which has its own
PLAIN: Final = "plain"  # the parameters as they are: their plan gives the model's depth


@dataclass(frozen=True)
class Look:
    """A plan to make, for the choices of all selectors that need the same parameters.

    ``source`` is a word for these parameters, ``values`` all that are set, ``settings`` what decides the plan.
    """

    case: Case
    source: str
    values: Settings
    rules: Mapping[str, Rule]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class FineTune:
    """One fine-tune that the study wants: layers 1..boundary are frozen (0: a method without a boundary).

    The budget ``compute`` gives it as many epochs as full fine-tuning's FLOPs allow. ``rates`` is its grid, widened
    ones last; empty until another fine-tune has decided the rate.
    """

    case: Case
    seed: int
    method: str
    boundary: int
    budget: Budget
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Known:
    """The content of the tables: depths of planned cases, boundaries that selectors choose, and finished fine-tunes.

    ``done`` holds the learning rate that each of these took.
    """

    layers: Mapping[Case, int]
    chosen: Mapping[Case, frozenset[int]]
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
    planned = [case for case in cases if case in known.layers]
    rates = {case: description.rates_of(case.model) for case in planned}
    grids = {case: coarse(description.boundaries, rates[case], known.layers[case]) for case in planned}
    chosen = {case: sorted(known.chosen.get(case, ())) for case in planned}
    wanted = [
        _freeze(description, case, seed, boundary, known)
        for seed in description.seeds
        for phase in (grids, chosen)
        for case in planned
        for boundary in phase[case]
    ]
    for seed in description.seeds:
        for case in planned:
            for method, arm in description.methods.items():
                if arm.includes(case, seed):
                    wanted += _arm(description, case, seed, method, arm, known)
    return list(dict.fromkeys(wanted))


def batches(wanted: Sequence[FineTune], together: int) -> Iterator[tuple[FineTune, ...]]:
    """Group fine-tunes into jobs: at most ``together`` neighbours of one case, seed and budget."""
    ready = [fine_tune for fine_tune in wanted if fine_tune.rates]
    for _, group in groupby(ready, key=lambda one: (one.case, one.seed, one.budget)):
        members = list(group)
        for start in range(0, len(members), together):
            yield tuple(members[start : start + together])


def coarse(boundaries: Sequence[float], rates: Rates, layers: int) -> list[int]:
    """Return the boundaries at shares of the depth; the first of each region of rates leads: others take its rate."""
    grid = sorted({math.ceil(share * layers) for share in boundaries})
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


def _freeze(description: Description, case: Case, seed: int, boundary: int, known: Known) -> FineTune:
    """A boundary's fine-tune, at the rate of its region's leader with the first seed."""
    layers, first, rates = known.layers[case], description.seeds[0], description.rates_of(case.model)
    here = region(rates, boundary / layers)
    grid = coarse(description.boundaries, rates, layers)
    leader = next((one for one in grid if region(rates, one / layers) == here), boundary)
    begun = FineTune(case, first, method_of(leader), leader, "epochs", tuple(rates[here]))
    wanted = FineTune(case, seed, method_of(boundary), boundary, "epochs", ())
    return _tuned(begun, wanted, description.widen, known)


def _arm(description: Description, case: Case, seed: int, method: str, arm: Arm, known: Known) -> Iterator[FineTune]:
    """A method without a boundary tunes a rate of its own, with its first seed; a race with every seed."""
    if method == RACE:
        yield FineTune(case, seed, method, 0, "epochs", _RACED)
        return
    first = (arm.seeds or description.seeds)[0]
    rates = tuple(arm.rates or description.rates_of(case.model)[0])
    begun = FineTune(case, first, method, 0, "epochs", rates)
    widen = description.widen if arm.widen is None else arm.widen
    budgets: list[Budget] = ["epochs", "compute"] if arm.equal_compute else ["epochs"]
    for budget in budgets:
        yield _tuned(begun, FineTune(case, seed, method, 0, budget, ()), widen, known)


def _tuned(begun: FineTune, wanted: FineTune, widen: int, known: Known) -> FineTune:
    """The fine-tune with its rates: those of its grid if it is the one that is tuned, else the rate that won there."""
    tuned = _widest(begun, widen, known)
    if wanted == replace(begun, rates=()):
        return tuned
    return replace(wanted, rates=(known.done[tuned],) if tuned in known.done else ())


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
