"""A selector's answer, and the selectors that see no evidence except the cost."""

from dataclasses import dataclass
from pkgutil import resolve_name
from random import Random
from typing import Final

from salf.errors import UserError
from salf.evidence import Evidence
from salf.files import significant
from salf.plan_records import Certainty, RunnerUp
from salf.selectors import SELECTORS, SIGNALS, Selector
from stages.common.params import Plan
from stages.plan.budget import Budget


def certainty(words: str, value: float | None = None, low: float | None = None, high: float | None = None) -> Certainty:
    """The certainty of a choice that no resamples decide."""
    value, low, high = (number if number is None else significant(number) for number in (value, low, high))
    return Certainty(win_share=None, value=value, low=low, high=high, words=words)


FIXED: Final = certainty("a fixed depth: nothing is estimated")


class AbsentEvidenceError(UserError):
    """A selector's evidence is missing; the message says what makes it."""


@dataclass(frozen=True)
class Choice:
    """A boundary and why; the rest as in the plan (:class:`salf.plan_records.SelectedBoundary`)."""

    boundary: int
    reason: str
    certainty: Certainty = FIXED
    runners_up: tuple[RunnerUp, ...] = ()
    fallback: str | None = None
    scores: tuple[float | None, ...] | None = None
    interval: tuple[int, int] | None = None
    warning: str | None = None

    @property
    def fixed(self) -> bool:
        """Whether the boundary is a depth given beforehand, and rests on no evidence."""
        return self.certainty == FIXED


def choices(evidence: Evidence, params: Plan) -> tuple[dict[str, Choice], dict[str, str]]:
    """The choice of each selector that has its evidence, and what the evidence of the others takes."""
    found, absent = dict[str, Choice](), dict[str, str]()
    for name, entry in SELECTORS.items():
        try:
            found[name] = choose(entry, evidence, params)
        except AbsentEvidenceError as error:
            absent[name] = str(error)
    return found, absent


def choose(entry: Selector, evidence: Evidence, params: Plan) -> Choice:
    """Let one selector choose."""
    signal = SIGNALS.get(entry.needs)
    if signal and not set(signal.columns) <= set(evidence.signals):
        raise AbsentEvidenceError(
            f"its signal was not measured; add {entry.needs} to signals.kinds in params.yaml (where it is there "
            "already, these examples cannot give it: dvc repro --force --single-item signals says why)"
        )
    if entry.needs == "pilot" and evidence.pilot is None:
        raise AbsentEvidenceError("set pilot.enabled to true")
    return resolve_name(f"stages.plan.{entry.function}")(evidence, params.model_copy(update=entry.settings))


def full(_evidence: Evidence, _params: Plan) -> Choice:
    """Freeze nothing."""
    return Choice(0, "full fine-tuning: nothing is frozen")


def none(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze every layer: only the final norm trains, and an untied head."""
    return Choice(evidence.layers, "every layer is frozen: only what follows the last layer trains")


def half(evidence: Evidence, _params: Plan) -> Choice:
    """Freeze the lower half of the layers, whatever the task."""
    return Choice(evidence.layers // 2, "the lower half of the layers is frozen")


def last_n(evidence: Evidence, params: Plan) -> Choice:
    """Train the last ``plan.last_n`` layers."""
    trained = min(params.last_n, evidence.layers - 1)
    cut = "" if trained == params.last_n else f" (plan.last_n is {params.last_n}; all layers would be full fine-tuning)"
    return Choice(evidence.layers - trained, f"the last {trained} layers train{cut}")


def first_n(_evidence: Evidence, params: Plan) -> Choice:
    """Train the embeddings and the first ``plan.first_n`` layers, or as many as the plan: a control, and no plan.

    Its boundary is 0: gradients pass through every layer on their way to the first ones.
    """
    if params.selector == "first-n":
        raise UserError(
            "params.yaml: plan.selector = first-n: a plan freezes the first layers, and this control the last; "
            "compare it as a method: add first-n to compare.methods"
        )
    trained = (
        "the first layers, as many as the plan trains," if params.first_n is None else f"layers 1 to {params.first_n}"
    )
    return Choice(0, f"{trained} and the embeddings train: gradients pass through all layers")


def draw(evidence: Evidence, params: Plan) -> Choice:
    """Draw a boundary uniformly from 1..L-1."""
    boundary = Random(params.seed).randint(1, evidence.layers - 1)
    return Choice(boundary, f"drawn at random from 1..{evidence.layers - 1} with seed {params.seed}")


def affordable(evidence: Evidence, params: Plan) -> Choice:
    """Freeze as few layers as ``plan.budget`` allows; a boundary's score is its cost.

    Training above boundary k includes training above k+1, so with enough data and steps it can do no worse.
    """
    budget = Budget.of(params, evidence.frontier)
    boundary = budget.shallowest()
    cost = budget.words(budget.costs[boundary])
    return Choice(
        boundary,
        f"a budget of {budget.words(budget.limit)}{budget.whole} pays for all layers above {boundary} ({cost})",
        scores=tuple(budget.costs),
    )


def oracle(evidence: Evidence, params: Plan) -> Choice:
    """Take the boundary ``plan.oracle``, which was measured to be the best."""
    if params.oracle is None:
        raise AbsentEvidenceError("set plan.oracle to the boundary that was measured to be the best")
    if params.oracle > evidence.layers:
        raise UserError(f"params.yaml: plan.oracle = {params.oracle}: allowed for this model: 0 to {evidence.layers}")
    return Choice(params.oracle, f"plan.oracle says that boundary {params.oracle} was measured to be the best")
