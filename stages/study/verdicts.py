"""Every rule on every case: what it chose, what came of it, and how far that is from the best that was measured.

Four regrets, since none alone is fair to all rules. ``regret``: behind the best measured boundary, whatever that
costs. ``regret_at_cost``: behind the best at equal or lower cost, what deciding costs included; a rule that freezes
nearly everything has almost none. ``regret_cross_fitted``: as the first, but the best boundary is found on other test
examples than those it is scored on, so that luck in its choice does not count against the rule; it may be negative.
``regret_at_cost_cross_fitted``: the same of the best at equal or lower cost, the rule's own fine-tune among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import spearmanr

from salf.files import rounded
from stages.study.measured import DIGITS, FULL, Budget, Case, Choice
from stages.study.resamples import Resamples, cross_fitted, holm, interval, p_value

ORACLE = "oracle"
SAME_COST = 1e-9  # shares of one boundary's cost differ by rounding alone


@dataclass(frozen=True)
class Verdict:
    """One rule on one case; quality and regrets in ``unit``, what was not measured is absent.

    Attributes:
        method: the fine-tune that does what the rule says.
        interpolated: it was not measured with all of the case's seeds, and is read between its neighbours.
        seeds: how many were measured.
        cost_share: counted operations at equal epochs, as a share of full fine-tuning's; without ``deciding_share``,
            those of the fine-tunes by which the rule decides.
        behind_full: full fine-tuning's quality less the rule's, with its interval.
        p: of no difference from full fine-tuning; ``p_holm``: adjusted over the case's rules.
        equal_compute: quality at full fine-tuning's operations, over the seeds that full fine-tuning has too;
            ``equal_compute_behind_full`` against that, with its interval.
        rank_correlation: Spearman's, between what the rule predicts of the measured boundaries and their quality.
        above_chance: whether full fine-tuning is surely better here than naming the most frequent label always.
        best_boundary: the best that was measured.
    """

    data_set: str
    group: str
    model: str
    rule: str
    selector: str
    boundary: int | None
    method: str
    unit: str
    interpolated: bool = False
    seeds: int = 0
    quality: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    cost_share: float | None = None
    deciding_share: float = 0.0
    regret: float | None = None
    regret_at_cost: float | None = None
    regret_cross_fitted: float | None = None
    regret_at_cost_cross_fitted: float | None = None
    behind_full: float | None = None
    behind_full_low: float | None = None
    behind_full_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    equal_compute: float | None = None
    equal_compute_behind_full: float | None = None
    equal_compute_behind_full_low: float | None = None
    equal_compute_behind_full_high: float | None = None
    rank_correlation: float | None = None
    best_boundary: int | None = None
    above_chance: bool = True
    reason: str = ""

    @property
    def measured(self) -> bool:
        """Whether the rule's own fine-tune is there, or those on either side of it, and full fine-tuning's beside."""
        return self.behind_full is not None


def verdicts(resamples: Resamples, confidence: float) -> list[Verdict]:
    """All rules of a case, methods that are no boundary, and the oracle."""
    case = resamples.case
    found = [_verdict(choice, resamples, confidence) for choice in [*case.choices, *_own_methods(case), _oracle(case)]]
    compared = {v.rule: v.p for v in found if v.p is not None and v.method != FULL and v.rule != ORACLE}
    adjusted = holm(compared)
    above = case.chance is None or interval(resamples.quality(FULL), confidence)[0] > case.scale * case.chance
    return [_with(replace(verdict, above_chance=above), p_holm=adjusted.get(verdict.rule)) for verdict in found]


def method_of(case: Case, choice: Choice) -> str:
    """The measured method that does what a rule says: a method of its own, or one that freezes up to its boundary."""
    if (choice.selector, "epochs") in case.runs and choice.selector not in case.boundaries:
        return choice.selector
    by_boundary = {boundary: method for method, boundary in {**case.between, **case.boundaries}.items()}
    return by_boundary.get(-1 if choice.boundary is None else choice.boundary, "")


def rank_correlation(case: Case, choice: Choice) -> float | None:
    """Spearman's correlation over measured boundaries between 0 and L; ``None``: no three values, or no spread.

    Gains say nothing of 0 and L, and that full fine-tuning is good and none is bad any rule may guess: so that all
    rules that predict are scored on the same boundaries, these two are left out.
    """
    if len(choice.scores) != case.layers + 1:
        return None
    pairs = [
        (score, case.quality(method))
        for boundary, method in case.curve().items()
        if 0 < boundary < case.layers and (score := choice.scores[boundary]) is not None
    ]
    predicted, quality = ([pair[side] for pair in pairs] for side in (0, 1))
    if len(pairs) < 3 or len(set(predicted)) == 1 or len(set(quality)) == 1:
        return None
    return float(spearmanr(predicted, quality).statistic)


def _verdict(choice: Choice, resamples: Resamples, confidence: float) -> Verdict:
    case = resamples.case
    method = method_of(case, choice)
    verdict = Verdict(
        data_set=case.data_set,
        group=case.group,
        model=case.model,
        rule=choice.rule,
        selector=choice.selector,
        boundary=choice.boundary,
        method=method,
        unit=case.unit,
        deciding_share=choice.deciding_share,
        rank_correlation=rank_correlation(case, choice),
        reason=choice.reason,
    )
    if (method, "epochs") not in case.runs:
        return verdict
    found = {**_quality(method, resamples, confidence), **_regrets(case, method, choice.deciding_share)}
    return _with(replace(verdict, interpolated=method in case.between), **found)


def _quality(method: str, resamples: Resamples, confidence: float) -> dict[str, float | int | None]:
    case = resamples.case
    low, high = interval(resamples.quality(method), confidence)
    found: dict[str, float | int | None] = {
        "seeds": len(case.runs[method, "epochs"].seeds),
        "quality": case.quality(method),
        "quality_low": low,
        "quality_high": high,
        "cost_share": case.cost_share(method),
        **_behind_full(method, "epochs", "behind_full", resamples, confidence),
        **_behind_full(method, "compute", "equal_compute_behind_full", resamples, confidence),
    }
    longer = case.common_seeds(method, FULL, "compute")
    if longer:
        found["equal_compute"] = case.quality(method, "compute", longer)
    if method != FULL and case.common_seeds(method, FULL):
        found["p"] = p_value(resamples.over(method, FULL))
    return found


def _behind_full(
    method: str, budget: Budget, name: str, resamples: Resamples, confidence: float
) -> dict[str, float | int | None]:
    """Over the seeds that both have, with its interval; nothing where they have none."""
    over = resamples.case.over(method, FULL, budget)
    if over is None:
        return {}
    low, high = interval(-resamples.over(method, FULL, budget), confidence)
    return {name: -over, f"{name}_low": low, f"{name}_high": high}


def _regrets(case: Case, method: str, deciding_share: float) -> dict[str, float | int | None]:
    """Against the boundaries measured at equal epochs; a method that is none over the seeds that they have too."""
    curve, seeds = case.curve(), case.common_seeds(method, FULL)
    share = case.cost_share(method) + deciding_share
    if not seeds:
        return {}
    own = case.quality(method, seeds=seeds)
    quality = {m: case.quality(m, seeds=seeds) for m in curve.values()}
    best = max(curve, key=lambda boundary: (quality[curve[boundary]], boundary))
    cheaper = [m for m in curve.values() if case.cost_share(m) <= share + SAME_COST]
    return {
        "regret": quality[curve[best]] - own,
        "regret_at_cost": max(0.0, max((quality[m] for m in cheaper), default=own) - own),
        "regret_cross_fitted": _found_elsewhere(case, list(curve.values()), seeds) - own,
        "regret_at_cost_cross_fitted": _found_elsewhere(case, list(dict.fromkeys([*cheaper, method])), seeds) - own,
        "best_boundary": best,
    }


def _found_elsewhere(case: Case, methods: Sequence[str], seeds: Sequence[int]) -> float:
    """Quality of the best of some methods, each time the best by other seeds and examples than it is scored on."""
    return round(case.scale * float(cross_fitted([case.runs[m, "epochs"].only(seeds) for m in methods]).mean()), DIGITS)


def _own_methods(case: Case) -> list[Choice]:
    """Methods that are no boundary and that no rule is named after: they speak for themselves."""
    named = {choice.selector for choice in case.choices}
    at_boundary = case.boundaries.keys() | case.between.keys()
    methods = [method for method, budget in case.runs if budget == "epochs" and method not in at_boundary]
    return [Choice(m, m, None, "a method of its own, measured as it is", ()) for m in methods if m not in named]


def _oracle(case: Case) -> Choice:
    """The best boundary that was measured; what a rule would choose that had seen the test split."""
    curve = case.curve()
    best = max(curve, key=lambda boundary: (case.quality(curve[boundary]), boundary))
    return Choice(ORACLE, ORACLE, best, f"the best of {len(curve)} measured boundaries, seen afterwards", ())


def _with(verdict: Verdict, **values: float | int | None) -> Verdict:
    return replace(verdict, **rounded(values))
