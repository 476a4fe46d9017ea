"""``reports/study/summary.json``, typed: what the study comes to, method by method.

Differences are in points of accuracy, positive where better. They are means over groups of datasets (test sets of one
source are one), with two intervals of 95 %: over test examples and seeds of *these* datasets, and over datasets like
these (the dataset is the unit). Costs are FLOPs as a share of one full fine-tune at one learning rate.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Json = dict[str, Any]
Ends = tuple[float, float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Estimate(_Record):
    """A mean difference. What needs several groups of datasets is ``None`` where there is one.

    ``detectable_points``: the true difference that a two-sided test at 5 % finds with a power of 80 %.
    ``p``: of no difference.
    """

    mean_difference_points: float
    interval_examples: Ends
    interval_datasets: Ends | None = None
    detectable_points: float
    detectable_points_datasets: float | None = None
    p: float
    p_datasets: float | None = None


class MethodSummary(Estimate):
    """A method against tuned full fine-tuning, over the datasets and seeds that both have.

    Attributes:
        datasets: where it was measured; ``missing``: of those with full fine-tuning, where it was not.
        groups: number of sources of these datasets.
        seeds: all that were measured; ``fewest_seeds``: on the dataset with fewest.
        cost_share: one training with a known learning rate.
        total_cost_share: tuning by the documented recipe: all rates tried and the validation passes that choose; of a
            race, all its arms.
        points_above_fixed_depth: above the boundary that is the same on all datasets and costs as much on average;
            ``None``: no boundary above which a layer trains is as cheap.
        at_equal_flops: trained for as many epochs as full fine-tuning's FLOPs pay for, where that was measured.
        opened_by: what opens the result: transformers, PEFT, or salf alone.
    """

    datasets: list[str]
    missing: list[str]
    groups: int
    seeds: list[int]
    fewest_seeds: int
    cost_share: float
    total_cost_share: float
    points_above_fixed_depth: float | None
    above_fixed_depth: Estimate | None
    at_equal_flops: Estimate | None
    opened_by: Literal["transformers", "PEFT", "salf"]


class DefaultChoice(_Record):
    """The default by the rule that was fixed beforehand.

    The rule: among methods whose result transformers or PEFT opens and that were measured on every group, with all
    seeds of full fine-tuning there, the one of the lowest total cost whose mean difference is at least
    ``margin_points``; full fine-tuning is one of them.

    Attributes:
        datasets: where all candidates were measured; the rule reads these alone.
        candidates: mean difference and total cost by method; ``not_everywhere``: the groups that others lack.
        left_out: for every group the choice by all others and its points there; ``points_left_out`` is their mean.
        aim: wanted at least or most; ``missed``: by how much the default misses it, in the units of the aim.
    """

    datasets: list[str]
    margin_points: float
    candidates: dict[str, Ends]
    not_everywhere: dict[str, list[str]]
    left_out: list[Json]
    points_left_out: float
    aim: dict[str, float]
    missed: dict[str, float]


class RaceSummary(_Record):
    """A race: all it cost, and how far its result is below the better grid of its arms' methods.

    The better grid is chosen as a user would, by validation results. ``winners``: by dataset, the method of each seed.
    """

    datasets: list[str]
    cost_share: float
    points_below_tuned_grid: float
    below_tuned_grid: Estimate
    winners: dict[str, list[str]]


class ScopeEffect(_Record):
    """The effect of a scope (instead of all layers) on weights and under LoRA, on the same datasets and seeds."""

    scope: str
    datasets: list[str]
    weights: Estimate
    lora: Estimate
    lora_minus_weights: Estimate


class Summary(_Record):
    """All of ``summary.json``.

    ``methods``: of the leading model; ``other_models``: the same of others where answers alone were trained.
    ``answer_side``: the main figures of answer-side tuning of all layers' weights, by their names in ``methods``.
    ``first_round``: selectors, readings of the paper's selector, headroom and interaction, as release 0.1.0's rows gave
    them. The rest are rows of the tables that the page shows (``shown.yaml`` names their columns).
    """

    version: Literal[2] = 2
    headline: str
    default_method: str
    default: DefaultChoice
    methods: dict[str, MethodSummary]
    other_models: dict[str, dict[str, MethodSummary]]
    race: RaceSummary | None
    answer_side: Json | None
    orthogonal: list[ScopeEffect]
    forgetting: list[Json]
    weights_kept: list[Json]
    by_dataset: list[Json]
    sign: list[Json]
    techniques: list[Json]
    equal_rates: list[Json]
    first_round: Json | None
    leading: str
    study: Json
