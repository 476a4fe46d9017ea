"""From the artifacts to the facts of the headline and the key figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from salf.methods import frozen_by_name, method_of
from salf.plan import FreezePlan
from stages.report.artifacts_in import Artifacts
from stages.report.headline import Facts
from stages.report.quality import OVER_CLASSES, SCORES, Method, baselines, label_shares, methods
from stages.report.wording import Interval, decimal, parameters, percent, seconds, size, span

_MEANINGFUL_MATCH: Final = 0.05


@dataclass(frozen=True)
class KeyFigure:
    """A number of the first screen: what it is, how it reads, and what it is made of."""

    label: str
    text: str
    note: str


@dataclass(frozen=True)
class Answer:
    """Everything that the first screen and the summary say is made of this."""

    facts: Facts
    metric: str
    method: Method | None
    full: Method | None


def answer(artifacts: Artifacts) -> Answer:
    """Pick the method that follows the plan and compare it with full fine-tuning."""
    compared = {method.name: method for method in methods(artifacts)}
    plain = baselines(artifacts)
    metric = leading_metric(artifacts, list(compared.values()))
    chosen, full = _chosen(artifacts, compared), compared.get("full")
    return Answer(_facts(artifacts, chosen, full, plain, metric), metric, chosen, full)


def leading_metric(artifacts: Artifacts, compared: Sequence[Method]) -> str:
    """The score that the page leads with.

    Accuracy for classification. For free answers the exact match, unless hardly any answer is exactly
    right: ratios of two tiny shares say nothing, the loss does.
    """
    quality = str((artifacts.metrics or {}).get("quality") or "accuracy")
    best = max((m.scores[quality].value for m in compared if quality in m.scores), default=0.0)
    return quality if quality == "accuracy" or best >= _MEANINGFUL_MATCH else "loss"


def key_figures(found: Answer, plan: FreezePlan) -> list[KeyFigure]:
    """Quality, compute, time and memory next to full fine-tuning, and the certainty of the boundary."""
    method, full = found.method, found.full
    tiles = [_quality_tile(found)] if method and found.metric in method.scores else []
    share = found.facts.cost
    tiles.append(
        KeyFigure("of full’s FLOPs", percent(share), "counted while training" if method else "predicted by the plan")
    )
    if method and full:
        tiles += _measured_tiles(method, full)
    trained = plan.frontier[found.facts.boundary].trained_parameters
    note = f"{parameters(trained)} of {parameters(plan.parameters.total)}"
    tiles.append(KeyFigure("of parameters trained", percent(trained / plan.parameters.total), note))
    if plan.certainty.win_share is not None:
        tiles.append(
            KeyFigure("of resamples choose it", percent(plan.certainty.win_share), f"boundary {plan.boundary}")
        )
    return tiles


def _quality_tile(found: Answer) -> KeyFigure:
    method, full, metric = found.method, found.full, found.metric
    if method is None:
        raise ValueError("a quality tile needs an evaluated method")
    mine = method.scores[metric]
    note = f"full: {decimal(full.scores[metric].value)}" if full and metric in full.scores else span(mine)
    return KeyFigure(f"test {SCORES[metric]}", decimal(mine.value), note)


def _measured_tiles(method: Method, full: Method) -> list[KeyFigure]:
    tiles = []
    if method.seconds_share is not None:
        note = f"{seconds(method.seconds)} against {seconds(full.seconds)}"
        tiles.append(KeyFigure("of full’s training time", percent(method.seconds_share), note))
    if method.memory_share is not None:
        note = f"{size(method.peak_memory)} against {size(full.peak_memory)}"
        tiles.append(KeyFigure("of full’s peak memory", percent(method.memory_share), note))
    return tiles


def _chosen(artifacts: Artifacts, compared: Mapping[str, Method]) -> Method | None:
    """The method that follows the plan's selector, else one with its boundary, else ``salf``, else the nearest."""
    plan = artifacts.plan
    boundaries = {name: _boundary_of(plan, name) for name in compared if method_of(name).scope != "full"}
    found = {name: boundary for name, boundary in boundaries.items() if boundary is not None}
    preference = {name: rank for rank, name in enumerate((str(plan.selector), f"{plan.selector}+lora"))}

    def rank(name: str) -> tuple[int, bool, bool, int, bool]:
        method, distance = method_of(name), abs(found[name] - plan.boundary)
        return preference.get(name, 2), distance > 0, method.scope != "salf", distance, method.lora

    return compared[min(found, key=rank)] if found else None


def _boundary_of(plan: FreezePlan, name: str) -> int | None:
    """The last frozen layer of a method; ``None`` for one that says nothing about a boundary."""
    scope = method_of(name).scope
    chosen = {str(selector): found.boundary for selector, found in plan.boundaries.items()}
    return chosen.get(scope, frozen_by_name(scope))


def _facts(
    artifacts: Artifacts,
    method: Method | None,
    full: Method | None,
    plain: Mapping[str, Mapping[str, Interval]],
    metric: str,
) -> Facts:
    plan = artifacts.plan
    metrics = artifacts.metrics or {}
    own = _boundary_of(plan, method.name) if method else None
    boundary = plan.boundary if own is None else own
    measured = {_boundary_of(plan, name) for name in metrics.get("methods", {})}
    shares = label_shares(artifacts.meta, "test")
    scores = method.scores.get(metric) if method else None
    law = (artifacts.law or {}).get("quantities", {}).get(plan.quantity)
    return Facts(
        layers=plan.model.layers,
        boundary=boundary,
        unmeasured_plan=plan.boundary if method and plan.boundary not in measured else None,
        metric=SCORES[metric],
        partial=scores,
        full=full.scores.get(metric) if full else None,
        difference=method.differences.get(metric) if method else None,
        detectable=method.detectable.get(metric) if method else None,
        confidence=metrics.get("intervals", {}).get("confidence"),
        cost=method.cost_share if method and scores else plan.frontier[boundary].flops_share,
        examples=(artifacts.meta.get("splits", {}).get("test") or {}).get("rows"),
        seeds=method.seeds if method else 1,
        baselines={name: record[metric] for name, record in plain.items() if metric in record},
        frequencies=(min(shares.values()), max(shares.values())) if shares else None,
        other_scores={SCORES[name]: method.scores[name] for name in OVER_CLASSES if name in method.scores}
        if method
        else {},
        law_fits=law["fits"] if law else None,
        fallback=plan.fallback,
    )
