"""Chance: what a rule that knows nothing would get."""

import random

from stages.common.params import Plan
from stages.plan.evidence import Evidence
from stages.plan.selectors.choice import Choice


def draw(evidence: Evidence, params: Plan) -> Choice:
    """Draw a boundary uniformly from 1..L-1."""
    boundary = random.Random(params.seed).randint(1, evidence.layers - 1)
    return Choice(boundary, f"drawn at random from 1..{evidence.layers - 1} with seed {params.seed}")
