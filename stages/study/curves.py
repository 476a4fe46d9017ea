"""What was measured of every boundary: the curves behind the verdicts."""

from collections.abc import Iterator
from dataclasses import dataclass

from stages.study.measured import FULL
from stages.study.resamples import Resamples, interval


@dataclass(frozen=True)
class Point:
    """One boundary of a case at equal epochs; quality in ``unit``, mean over seeds, with its interval.

    Attributes:
        natural: accuracy under the label frequencies of the dataset's own test file, where these are known.
        cost_share: counted FLOPs as a share of full fine-tuning's.
        longer: quality at full fine-tuning's operations, where that was measured; ``longer_full``: full fine-tuning's,
            over the same seeds.
    """

    data_set: str
    model: str
    boundary: int
    layers: int
    cost_share: float
    unit: str
    quality: float
    low: float
    high: float
    natural: float | None
    seeds: int
    longer: float | None
    longer_full: float | None


def curve_points(resamples: Resamples, confidence: float) -> Iterator[Point]:
    """Points of a case, from boundary 0 to the deepest that was measured."""
    case = resamples.case
    for boundary, method in case.curve().items():
        run, seeds = case.runs[method, "epochs"], case.common_seeds(method, FULL, "compute")
        low, high = interval(resamples.quality(method), confidence)
        yield Point(
            data_set=case.data_set,
            model=case.model,
            boundary=boundary,
            layers=case.layers,
            cost_share=case.cost_share(method),
            unit=case.unit,
            quality=case.quality(method),
            low=low,
            high=high,
            natural=case.natural_quality(method),
            seeds=len(run.seeds),
            longer=case.quality(method, "compute", seeds) if seeds else None,
            longer_full=case.quality(FULL, "epochs", seeds) if seeds else None,
        )
