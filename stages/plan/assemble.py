"""Puts the chosen boundary, its reasons, its costs and its exports together as a freeze plan."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from salf.errors import UserError
from salf.evidence import Evidence
from salf.families import Family, family_of
from salf.files import significant
from salf.parameters import trained_names
from salf.plan import FreezePlan
from salf.plan_records import (
    CostModel,
    EvidenceHashes,
    Exports,
    ParameterCounts,
    PlannedModel,
    Rates,
    SelectedBoundary,
)
from salf.records import BaseFacts, PreparedSizes
from salf.scale.inputs import timed
from salf.settings import AnswerSide, Batches, Count
from salf.workload import cost_model
from stages.common.params import Plan
from stages.plan.budget import Budget, timed_budget
from stages.plan.by_trace import basis_of
from stages.plan.choice import Choice, choices
from stages.plan.frontier import frontier

_FACTORY_NORM: Final = (
    "LLaMA-Factory: the final norm stays frozen; naming 'norm' in freeze_extra_modules would match every layer's "
    "norms by substring, unfreeze them below the boundary and send back-propagation all the way down"
)
_FACTORY_NOTHING: Final = "LLaMA-Factory: cannot train the final norm alone; no settings are given"
_PEFT_NOTHING: Final = "PEFT: no layer is left to adapt; an empty layers_to_transform would adapt every layer"


class Work(Batches):
    """The part of ``finetune`` that decides the cost."""

    processes: Count
    lora_rank: Count
    answer_side: AnswerSide


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
        **_split(base, boundary),
        reason=_reason(choice, boundary, budget),
        certainty=choice.certainty,
        fallback=choice.fallback,
        runners_up=list(choice.runners_up),
        boundaries={name: _selected(each, _capped(each, budget)) for name, each in found.items()},
        absent=absent,
        frontier=points,
        cost_model=work,
        evidence=hashes,
        exports=_exports(base, boundary),
        timed=timed_budget(params, points, rates) if rates else None,
    )


def _split(base: BaseFacts, boundary: int) -> dict[str, Any]:
    shape, trained, total = base.shape, base.trained_parameters(boundary), base.trained_parameters(0)
    return {
        "model": PlannedModel(
            name=base.identity.name,
            weights_sha256=base.identity.weights_sha256,
            family=base.identity.family,
            layers=shape.layers,
            hidden=shape.hidden,
            vocabulary=shape.vocabulary,
            tied_head=shape.tied_head,
        ),
        "boundary": boundary,
        "frozen_layers": list(range(1, boundary + 1)),
        "trained_layers": list(range(boundary + 1, shape.layers + 1)),
        "embeddings_trained": boundary == 0,
        "norm_trained": True,
        "head_trained": boundary == 0 or not shape.tied_head,
        "head_note": _head_note(shape.tied_head, boundary),
        "parameters": ParameterCounts(frozen=total - trained, trained=trained, total=total),
    }


def _capped(choice: Choice, budget: Budget) -> int:
    return choice.boundary if choice.fixed else budget.shallowest(choice.boundary)


def _selected(choice: Choice, boundary: int) -> SelectedBoundary:
    scores = None
    if choice.scores is not None:
        scores = [None if score is None else significant(score) for score in choice.scores]
    before = None if boundary == choice.boundary else choice.boundary
    return SelectedBoundary(
        boundary=boundary,
        before_budget=before,
        reason=choice.reason,
        scores=scores,
        interval=choice.interval and list(choice.interval),
        warning=choice.warning,
    )


def _head_note(tied: bool, boundary: int) -> str:
    if not tied:
        return "the head has its own weights and trains"
    fate = "both train" if boundary == 0 else "both stay frozen"
    return f"the head is tied: it is the embedding matrix, and {fate}"


def _reason(choice: Choice, boundary: int, budget: Budget) -> str:
    if budget.pays_for(choice.boundary):
        return choice.reason
    digits = budget.told_apart(budget.costs[choice.boundary])
    cost, limit, taken = (
        budget.words(value, digits) for value in (budget.costs[choice.boundary], budget.limit, budget.costs[boundary])
    )
    cost, limit = f"{cost}{budget.whole}", f"plan.budget = {limit}"
    if choice.fixed:
        return f"{choice.reason}; it costs {cost}, more than {limit}: a fixed depth is not moved"
    return (
        f"{choice.reason}; boundary {choice.boundary} would cost {cost}, more than {limit}: "
        f"the next one within it is {boundary} ({taken})"
    )


def _exports(base: BaseFacts, boundary: int) -> Exports:
    """Settings that make other tools train what the plan trains (layers from 0), and what they cannot express."""
    names, layers, tied = base.identity.parameter_names, base.shape.layers, base.shape.tied_head
    family = family_of(base.identity.family, names)
    notes = [_PEFT_NOTHING] if boundary == layers else []
    if boundary:
        notes.append(_FACTORY_NOTHING if boundary == layers and tied else _FACTORY_NORM)
    return Exports(
        peft=_peft(base, family, boundary),
        axolotl=_axolotl(family, layers, boundary, tied),
        llama_factory=_llama_factory(family, layers, boundary, tied),
        parameter_names={"trained": trained_names(names, family, boundary, tied_head=tied)},
        notes=notes,
    )


def _peft(base: BaseFacts, family: Family, boundary: int) -> dict[str, Any]:
    """Keyword arguments of ``peft.LoraConfig``; rank and alpha are the user's."""
    layers = base.shape.layers
    if boundary == layers:
        return {}
    return {
        "task_type": "CAUSAL_LM",
        "target_modules": base.shape.adapted_maps,
        "layers_to_transform": list(range(boundary, layers)),
        "layers_pattern": family.layers.rsplit(".", 1)[-1],
    }


def _axolotl(family: Family, layers: int, boundary: int, tied: bool) -> list[str]:
    """``unfrozen_parameters``: regular expressions matched from a name's beginning; Axolotl escapes the dots."""
    parts = [f"^{family.norm}."]
    if boundary < layers:
        parts.append(f"^{family.layers}.({'|'.join(map(str, range(boundary, layers)))}).")
    if boundary == 0:
        parts += [f"^{part}." for part in (family.embedding, *family.inputs)]
    if boundary == 0 or not tied:
        parts.append(f"^{family.head}.")
    return parts


def _llama_factory(family: Family, layers: int, boundary: int, tied: bool) -> dict[str, Any]:
    """Entries of a training file: the last ``freeze_trainable_layers`` layers train."""
    if boundary == 0:
        return {"finetuning_type": "full"}
    if boundary == layers and tied:
        return {}
    settings: dict[str, Any] = {
        "finetuning_type": "freeze",
        "freeze_trainable_layers": layers - boundary,
        "freeze_trainable_modules": "all",
    }
    if not tied:
        settings["freeze_extra_modules"] = family.head.rsplit(".", 1)[-1]
    return settings
