"""Rules that choose a boundary, behind one interface, so that they can be compared.

``salf`` is the paper's; the others are baselines and rivals: what it has to beat.
"""

from collections.abc import Mapping
from typing import Final

from stages.common.params import SelectorName
from stages.plan.selectors.choice import Selector
from stages.plan.selectors.draw import draw
from stages.plan.selectors.full import full
from stages.plan.selectors.last_n import last_n
from stages.plan.selectors.none import none
from stages.plan.selectors.oracle import oracle
from stages.plan.selectors.salf import salf

SELECTORS: Final[Mapping[SelectorName, Selector]] = {
    "salf": salf,
    "full": full,
    "none": none,
    "last-n": last_n,
    "random": draw,
    "oracle": oracle,
}
