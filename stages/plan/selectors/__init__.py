"""Rules that choose a boundary, behind one interface, so that they can be compared.

``salf`` is the paper's, by the gain that the parameters ask for, ``salf-<quantity>-<gain>`` by that one whatever
they say; the others are baselines and rivals: what it has to beat.
"""

from collections.abc import Mapping
from typing import Final

from salf.settings import SelectorName
from stages.plan.selectors.choice import Selector
from stages.plan.selectors.fixed import affordable, draw, first_n, full, half, last_n, none, oracle
from stages.plan.selectors.measured import arrival, block_influence, grad_norm, probe, spectrum, variability
from stages.plan.selectors.predicted import budget, pilot, tolerance
from stages.plan.selectors.salf import salf, salf_by

SELECTORS: Final[Mapping[SelectorName, Selector]] = {
    "salf": salf,
    "full": full,
    "none": none,
    "half": half,
    "last-n": last_n,
    "first-n": first_n,
    "random": draw,
    "affordable": affordable,
    "budget": budget,
    "tolerance": tolerance,
    "pilot": pilot,
    "arrival": arrival,
    "probe": probe,
    "block-influence": block_influence,
    "variability": variability,
    "grad-norm": grad_norm,
    "spectrum": spectrum,
    "oracle": oracle,
    "salf-deviation-observed": salf_by("deviation", "observed"),
    "salf-deviation-ratio": salf_by("deviation", "ratio"),
    "salf-deviation-local": salf_by("deviation", "local"),
    "salf-deviation-marginal": salf_by("deviation", "marginal"),
    "salf-loss-observed": salf_by("loss", "observed"),
    "salf-loss-ratio": salf_by("loss", "ratio"),
    "salf-loss-local": salf_by("loss", "local"),
    "salf-loss-marginal": salf_by("loss", "marginal"),
}
