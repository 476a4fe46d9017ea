"""How many epochs a method may train for what full fine-tuning costs: a comparison at equal compute.

Whoever freezes layers may spend what that saves on more epochs; this is what a comparison at equal
epochs leaves out. Operations are counted, batch by batch, as the training loop counts them.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from salf.engine.batches import Example
from salf.engine.training.costs import Costs
from salf.engine.training.loop import epoch_batches
from salf.settings import Finetune
from stages.finetune.scope import Scope


def epochs_for_as_much(
    full: Costs,
    costs: Costs,
    scope: Scope,
    examples: Sequence[Example],
    shared: int,
    params: Finetune,
    seed: int,
    processes: int,
) -> int:
    """The most whole epochs that cost no more operations than full fine-tuning's ``params.epochs``.

    Never fewer than those: a method that saves nothing (large adapters on all layers) is trained as long
    as full fine-tuning is.

    Args:
        full: counts full fine-tuning's operations.
        costs: counts the method's.
        scope: what the method trains.
        examples: the training split.
        shared: tokens of the beginning that all prompts share.
        params: the schedule.
        seed: of the order of examples.
        processes: how many train together.
    """
    everything = Scope(scope.depth, 0, tuple(range(1, scope.depth + 1)))
    allowed = sum(islice(_of_epochs(full, everything, examples, shared, params, seed, processes), params.epochs))
    spent = costs.frozen(examples, shared) if costs.boundary else 0
    epochs = 0
    for cost in _of_epochs(costs, scope, examples, shared, params, seed, processes):
        spent += cost
        if spent > allowed:
            break
        epochs += 1
    return max(epochs, params.epochs)


def _of_epochs(
    costs: Costs, scope: Scope, examples: Sequence[Example], shared: int, params: Finetune, seed: int, processes: int
) -> Iterator[int]:
    """Operations of one epoch after another, without end."""
    step = 0
    for epoch in epoch_batches(examples, shared, params, seed, processes):
        total = 0
        for parts in epoch:
            total += costs.step(parts, shared, scope.layers_at(step))
            step += 1
        yield total
