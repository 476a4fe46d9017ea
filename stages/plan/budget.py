"""The budget: a share of full fine-tuning's FLOPs, a time or a price, and what every boundary costs in that unit."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name
from typing import Final

from pydantic import ValidationError

from salf.errors import UserError
from salf.files import read_json, write_json
from salf.plan_records import CostModel, FrontierPoint, Rates, TimedBudget
from salf.settings import Device
from stages.common.params import Plan

_SECONDS: Final = {"min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """``plan.budget``, and each boundary's cost in its unit."""

    limit: float
    unit: str  # empty: share of full fine-tuning's FLOPs
    costs: Sequence[float]  # of the boundaries 0..L

    @classmethod
    def of(cls, params: Plan, points: Sequence[FrontierPoint]) -> "Budget":
        """The budget of a frontier, which is timed unless the budget is a share."""
        limit, unit = params.limit
        if not unit:
            return cls(limit, unit, [point.flops_share for point in points])
        per_second = _per_second(params)
        return cls(limit, unit, [(point.seconds or 0.0) * per_second for point in points])

    def words(self, cost: float) -> str:
        """A cost with its unit."""
        return f"{cost:.5g} {self.unit}" if self.unit else f"{100 * cost:.5g}%"

    @property
    def whole(self) -> str:
        """What a share is of."""
        return "" if self.unit else " of full fine-tuning"

    def pays_for(self, boundary: int) -> bool:
        """Whether a boundary's cost is within it."""
        return self.costs[boundary] <= self.limit

    def shallowest(self, first: int = 0) -> int:
        """The smallest boundary from ``first`` on that is within it (ours); a ``UserError`` says that none is."""
        for boundary in range(first, len(self.costs)):
            if self.pays_for(boundary):
                return boundary
        least = min(self.costs[first:])  # L's frozen pass may cost more than L-1's training
        allowed = f"{math.ceil(least * 1000) / 1000}{f' {self.unit} or more' if self.unit else ' to 1'}"
        raise UserError(
            f"params.yaml: plan.budget = {f'{self.limit:g} {self.unit}'.strip()}: the cheapest boundary costs "
            f"{least:.3f}{f' {self.unit}' if self.unit else self.whole}; allowed here: {allowed}"
        )


def timed_budget(params: Plan, points: Sequence[FrontierPoint], rates: Rates) -> TimedBudget:
    """The record of a budget in time or money."""
    seconds = params.limit[0] / _per_second(params)

    def first(took: Iterable[float | None]) -> int | None:
        return next((boundary for boundary, one in enumerate(took) if one is not None and one <= seconds), None)

    return TimedBudget(
        budget=str(params.budget),
        seconds=seconds,
        price_per_hour=params.price_per_hour,
        shallowest=first(point.seconds for point in points),
        shallowest_answer=first(point.answer.seconds if point.answer else None for point in points),
        rates=rates,
    )


def _per_second(params: Plan) -> float:
    """What a second takes of the budget."""
    unit = params.limit[1]
    return 1 / _SECONDS[unit] if unit in _SECONDS else (params.price_per_hour or 0.0) / _SECONDS["h"]


def rates_here(base: Path, device: Device, processes: int, work: CostModel, kept: Path) -> Rates:
    """Rates of this machine: those in the file ``kept``, or measured in a process of its own, which loads torch.

    Raises:
        UserError: fine-tuning runs otherwise than what can be timed, or the base model cannot be trained here.
    """
    if processes > 1 or device.frozen_weights != "whole":
        raise UserError(
            "params.yaml: plan.budget: time is measured with whole weights in one process: give a share of full "
            "fine-tuning's FLOPs, or set device.frozen_weights to whole and finetune.processes to 1"
        )
    known = None
    with suppress(UserError, ValidationError):  # none yet, damaged, or of an earlier version
        known = Rates.model_validate(read_json(kept))
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            rates = pool.submit(_measure, base, device, work, known).result()
        except BrokenProcessPool:
            raise UserError(
                "the process that times training was ended; if memory ran out, give plan.budget as a share"
            ) from None
    if rates != known:
        with suppress(OSError):  # a folder that is only readable
            write_json(kept, rates.model_dump(mode="json"))
    return rates


def _measure(*arguments: object) -> Rates:
    return resolve_name("salf.engine.rates:measure_rates")(*arguments)
