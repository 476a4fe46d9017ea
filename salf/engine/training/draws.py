"""Layers drawn at random for a while, then others: LISA.

Layerwise importance sampled AdamW (Pan et al. 2024, arXiv 2403.17919, Algorithm 1): embeddings and head
train all the time, and of the layers so many that are drawn anew for every interval of steps, each as
likely as any other. Layers that end an interval lose AdamW's moments, as in the authors' experiments,
which kept those of embeddings and head alone (github.com/OptimalScale/LMFlow, issue 729 and the trainer
there): so memory holds the moments of what trains now.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerDraws:
    """Which layers train when; a draw follows from the seed and the interval's number alone.

    Attributes:
        depth: L, the layers that there are to draw from.
        layers: how many train at a time (the paper's gamma).
        steps: optimizer steps of an interval (the paper's K).
        seed: of the draws.
    """

    depth: int
    layers: int
    steps: int
    seed: int

    def interval(self, step: int) -> int:
        """The number of a step's interval; both count from 0."""
        return step // self.steps

    def begins(self, step: int) -> bool:
        """Whether an interval begins with this step."""
        return step % self.steps == 0

    def at(self, step: int) -> tuple[int, ...]:
        """The layers of a step, from 1, ascending."""
        rng = np.random.default_rng([abs(self.seed), self.interval(step)])
        return tuple(sorted(int(layer) + 1 for layer in rng.choice(self.depth, self.layers, replace=False)))

    def within(self, steps: int) -> tuple[int, ...]:
        """The layers of so many steps, the first ones, together."""
        firsts = range(0, steps, self.steps)
        return tuple(sorted({layer for first in firsts for layer in self.at(first)}))
