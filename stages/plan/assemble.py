"""Puts the chosen boundary, its reasons, its costs and its exports together as a freeze plan."""

from collections.abc import Callable
from dataclasses import replace

from salf.at_boundary import at_boundary
from salf.errors import UserError
from salf.evidence import Evidence
from salf.files import rounded
from salf.plan import FreezePlan
from salf.plan_records import CostModel, EvidenceHashes, Rates, SelectedBoundary
from salf.records import BaseFacts, PreparedSizes
from salf.scale.inputs import timed
from salf.settings import AnswerSide, Batches, Count
from salf.workload import cost_model
from stages.common.params import Plan
from stages.plan.budget import Budget, timed_budget
from stages.plan.by_trace import basis_of
from stages.plan.choice import Choice, choices
from stages.plan.frontier import frontier


class Work(Batches):
    """The part of ``finetune`` that decides the cost."""

    processes: Count
    lora_rank: Count
    answer_side: AnswerSide
    cache_folder: str


def make_plan(
    base: BaseFacts,
    sizes: PreparedSizes,
    evidence: Evidence,
    params: Plan,
    schedule: Work,
    hashes: EvidenceHashes,
    measure: Callable[[CostModel], Rates],
) -> FreezePlan:
    """Choose the boundary and describe it.

    The budget caps each selector that rests on evidence. A fixed depth (``half``, ``full``, ``last-n``...) is never
    moved; if the plan's own costs more than the budget, its reason says so.
    """
    basis = basis_of(evidence, params)
    work = cost_model(
        sizes,
        schedule.epochs,
        schedule.batch_size,
        parts=schedule.accumulate * schedule.processes,
        packed=base.shape.packed,
        recompute=schedule.gradient_checkpointing,
        lora_rank=schedule.lora_rank,
        answer_side=schedule.answer_side,
    )
    rates = measure(work) if params.limit[1] else None
    points = frontier(base, work, evidence.laws[basis.quantity], timed(rates) if rates else None)
    budget = Budget.of(params, points)
    found, absent = choices(replace(evidence, frontier=tuple(points)), params)
    if params.selector in absent:
        raise UserError(f"params.yaml: plan.selector = {params.selector}: {absent[params.selector]}")
    choice = found[params.selector]
    boundary = _capped(choice, budget)
    return FreezePlan(
        schema_version=3,
        selector=params.selector,
        quantity=basis.quantity,
        gain=basis.gain,
        **at_boundary(base, boundary),
        reason=_reason(choice, boundary, budget),
        certainty=choice.certainty,
        fallback=choice.fallback,
        runners_up=list(choice.runners_up),
        boundaries={name: _selected(each, _capped(each, budget)) for name, each in found.items()},
        absent=absent,
        frontier=points,
        cost_model=work,
        evidence=hashes,
        timed=timed_budget(params, points, rates) if rates else None,
    )


def _capped(choice: Choice, budget: Budget) -> int:
    return choice.boundary if choice.fixed else budget.shallowest(choice.boundary)


def _selected(choice: Choice, boundary: int) -> SelectedBoundary:
    return SelectedBoundary(
        boundary=boundary,
        before_budget=None if boundary == choice.boundary else choice.boundary,
        reason=choice.reason,
        scores=None if choice.scores is None else rounded(list(choice.scores)),
        interval=choice.interval and list(choice.interval),
        warning=choice.warning,
    )


def _reason(choice: Choice, boundary: int, budget: Budget) -> str:
    if budget.pays_for(choice.boundary):
        return choice.reason
    costs = (budget.costs[choice.boundary], budget.limit, budget.costs[boundary])
    cost, limit, taken = map(budget.words, costs)
    cost, limit = f"{cost}{budget.whole}", f"plan.budget = {limit}"
    if choice.fixed:
        return f"{choice.reason}; it costs {cost}, more than {limit}: a fixed depth is not moved"
    return (
        f"{choice.reason}; boundary {choice.boundary} would cost {cost}, more than {limit}: "
        f"the next one within it is {boundary} ({taken})"
    )
