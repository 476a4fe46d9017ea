"""What a study wants next, from what it has: no state of its own, so that it goes on wherever its tables are.

Order: what decides most comes first. For every seed the coarse grid of boundaries of every data set (``Progress``
sees to that), then the boundaries that the rules choose, then denser where the validation loss of the first seed
bends most; last, methods that are no boundary, and some boundaries at equal compute.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import Final, Literal

from flows.study.description import MOST_RATE, Description, Rates

Budget = Literal["epochs", "compute"]
FULL: Final = "full"


@dataclass(frozen=True)
class Case:
    """A data set with a model."""

    data_set: str
    model: str


@dataclass(frozen=True)
class FineTune:
    """One fine-tune that the study wants.

    Attributes:
        boundary: layers 1..boundary are frozen; 0 for methods that are no boundary.
        budget: ``epochs``: as long as all others; ``compute``: as many epochs as full fine-tuning's FLOPs allow.
        rates: the grid of learning rates, those it was widened by in the end; empty: known when another fine-tune
            has ended.
        tried: how many of the rates, from the first, were trained at before; the tables have the best of these.
    """

    case: Case
    seed: int
    method: str
    boundary: int
    budget: Budget
    rates: tuple[float, ...]
    tried: int = field(default=0, compare=False)

    @property
    def new_rates(self) -> tuple[float, ...]:
        """Those that are to be trained at."""
        return self.rates[self.tried :]


@dataclass(frozen=True)
class Result:
    """What the agenda needs to know of a fine-tune that has ended."""

    learning_rate: float
    validation_loss: float


@dataclass(frozen=True)
class Known:
    """What is there already.

    Attributes:
        layers: depth of the cases' models, for those whose plans were read.
        chosen: boundaries that the rules choose.
        done: what has ended.
        failed: what was begun and did not come to its end.
        tried: fine-tunes, each with a rate that it was tried at, whether its result takes that into account or not.
    """

    layers: Mapping[Case, int]
    chosen: Mapping[Case, frozenset[int]]
    done: Mapping[FineTune, Result]
    failed: frozenset[FineTune] = frozenset()
    tried: frozenset[tuple[FineTune, float]] = frozenset()

    @cached_property
    def ended(self) -> Mapping[FineTune, list[FineTune]]:
        """What has ended, by what it is whatever its rates are: an agenda asks for the grids of many."""
        found: dict[FineTune, list[FineTune]] = {}
        for one in self.done:
            found.setdefault(replace(one, rates=()), []).append(one)
        return found


def method_of(boundary: int) -> str:
    """The method that freezes layers 1..boundary."""
    return f"freeze-{boundary}" if boundary else FULL


def is_boundary(fine_tune: FineTune) -> bool:
    """Whether it is a point of the curve over boundaries."""
    return fine_tune.method == method_of(fine_tune.boundary)


def agenda(description: Description, cases: Sequence[Case], known: Known) -> list[FineTune]:
    """Every fine-tune wanted as far as is known yet, done or not, the most telling first."""
    planned = [case for case in cases if case in known.layers]
    phases = {case: _phases(description, case, known) for case in planned}
    wanted: list[FineTune] = []
    for seed in description.seeds:
        for phase in range(2 + description.refine.rounds):
            for case in planned:
                grid = phases[case][phase] if phase < len(phases[case]) else []
                wanted += [_freeze(description, case, seed, boundary, known) for boundary in grid]
    for seed in description.seeds:
        for case in planned:
            grid = longer(description.equal_compute, known.layers[case])
            wanted += [_freeze(description, case, seed, boundary, known, "compute") for boundary in grid]
            wanted += [_other(description, case, seed, method, known) for method in description.methods]
    return list(dict.fromkeys(wanted))


def batches(wanted: Sequence[FineTune], together: int) -> Iterator[tuple[FineTune, ...]]:
    """Fine-tunes that go into one experiment: neighbours of one case, seed and budget, so many at most.

    One whose grid is widened goes by itself: training may diverge at a rate beyond those that were meant.
    """
    ready = [fine_tune for fine_tune in wanted if fine_tune.rates]
    for _, group in groupby(ready, key=lambda one: (one.case, one.seed, one.budget, one.tried and one.method)):
        members = list(group)
        for start in range(0, len(members), together):
            yield tuple(members[start : start + together])


def coarse(boundaries: Sequence[float], rates: Rates, layers: int) -> list[int]:
    """The coarse grid; the first of every region of learning rates leads, since the others wait for its rate.

    Args:
        boundaries: shares of the depth.
        rates: grids of learning rates.
        layers: the depth.
    """
    grid = at_depths(boundaries, layers)
    leaders = {region(rates, boundary / layers): boundary for boundary in reversed(grid)}
    return sorted(leaders.values()) + [boundary for boundary in grid if boundary not in leaders.values()]


def at_depths(shares: Sequence[float], layers: int) -> list[int]:
    """The boundaries that freeze these shares of the layers, rounded up."""
    return sorted({math.ceil(share * layers) for share in shares})


def longer(shares: Sequence[float], layers: int) -> list[int]:
    """The boundaries that are trained at equal compute: these shares of the layers, rounded down as the rule half does.

    At least one layer is frozen: full fine-tuning saves nothing to train on with.
    """
    return sorted({max(1, math.floor(round(share * layers, 9))) for share in shares})


def region(rates: Rates, share: float) -> float:
    """The depth from which on the learning rates of a boundary hold: the deepest entry not below it."""
    return max(start for start in rates if start <= share)


def widened(rates: Sequence[float], best: float) -> float | None:
    """The rate beyond the end of a grid that won, as far from it as its neighbour; ``None``: there is none to try.

    Args:
        rates: the grid, in any order.
        best: the one that won.
    """
    grid = sorted(rates)
    if len(grid) == 1 or best not in (grid[0], grid[-1]):
        return None
    end, neighbour = (grid[-1], grid[-2]) if best == grid[-1] else (grid[0], grid[1])
    beyond = float(f"{end * end / neighbour:.2g}")
    return beyond if beyond <= MOST_RATE and beyond not in rates else None


def midpoints(curve: Mapping[int, float], most: int) -> list[int]:
    """The middle of those gaps between neighbouring boundaries at whose ends a measured curve bends most.

    Args:
        curve: boundary → value.
        most: how many.
    """
    gaps = list(pairwise(sorted(curve)))
    slopes = {gap: (curve[gap[1]] - curve[gap[0]]) / (gap[1] - gap[0]) for gap in gaps}
    bends = {left[1]: abs(slopes[right] - slopes[left]) for left, right in pairwise(gaps)}
    sharpest = sorted(gaps, key=lambda gap: (-max(bends.get(end, 0.0) for end in gap), gap))
    return [(low + high) // 2 for low, high in sharpest if high - low > 1][:most]


def _phases(description: Description, case: Case, known: Known) -> list[list[int]]:
    """Boundaries by phase: coarse grid, the rules' choices, then every round of refinement that can be said yet."""
    first = coarse(description.boundaries, description.rates_of(case.model), known.layers[case])
    phases = [first, sorted(known.chosen.get(case, frozenset()) - set(first))]
    for _ in range(description.refine.rounds):
        curve = _curve(description, case, [b for phase in phases for b in phase], known)
        if curve is None:
            break
        # No layer trains behind the last boundary: that cliff is no bend of the curve before it.
        trained = {boundary: value for boundary, value in curve.items() if boundary < known.layers[case]}
        phases.append(midpoints(trained, description.refine.midpoints))
    return phases


def _curve(description: Description, case: Case, boundaries: Sequence[int], known: Known) -> dict[int, float] | None:
    """Validation loss of the first seed; ``None``: not all of it is measured."""
    curve = {}
    for boundary in boundaries:
        result = known.done.get(_freeze(description, case, description.seeds[0], boundary, known))
        if result is None:
            return None
        curve[boundary] = result.validation_loss
    return curve


def _freeze(
    description: Description, case: Case, seed: int, boundary: int, known: Known, budget: Budget = "epochs"
) -> FineTune:
    layers, first, rates = known.layers[case], description.seeds[0], description.rates_of(case.model)
    here = region(rates, boundary / layers)
    grid = coarse(description.boundaries, rates, layers)
    leader = next((one for one in grid if region(rates, one / layers) == here), boundary)
    begun = FineTune(case, first, method_of(leader), leader, "epochs", tuple(rates[here]))
    tuned = _widest(begun, description.widen, known)
    if (boundary, seed, budget) == (leader, first, "epochs"):
        return tuned
    return FineTune(case, seed, method_of(boundary), boundary, budget, _tuned(tuned, known))


def _other(description: Description, case: Case, seed: int, method: str, known: Known) -> FineTune:
    """A method that is no boundary has rates of its own, from the grid of full fine-tuning."""
    rates = tuple(description.rates_of(case.model)[0])
    tuned = _widest(FineTune(case, description.seeds[0], method, 0, "epochs", rates), description.widen, known)
    if seed == tuned.seed:
        return tuned
    return FineTune(case, seed, method, 0, "epochs", _tuned(tuned, known))


def _widest(begun: FineTune, most: int, known: Known) -> FineTune:
    """The fine-tune with the grid it has come to: widened by a rate whenever the one at its end won.

    A rate that failed widens nothing: the best of those before it counts.

    Args:
        begun: with the grid of the description.
        most: rates that are added.
        known: of the grids that it may have come to, the longest counts.
    """
    size = len(begun.rates)
    ended = [one for one in known.ended.get(replace(begun, rates=()), []) if one.rates[:size] == begun.rates]
    if not ended:
        return begun
    done = max(ended, key=lambda one: len(one.rates))
    beyond = widened(done.rates, known.done[done].learning_rate)
    if beyond is None or len(done.rates) >= size + most:
        return done
    # Tried already: it brought back an earlier rate, whose model is gone, so that all are trained again.
    tried = 0 if (done, beyond) in known.tried else len(done.rates)
    further = replace(done, rates=(*done.rates, beyond), tried=tried)
    return done if further in known.failed else further


def _tuned(leader: FineTune, known: Known) -> tuple[float, ...]:
    """The rate that the others of a region take over; none while the leader's grid is not at its end."""
    result = known.done.get(leader)
    return (result.learning_rate,) if result else ()
