"""How far a fine-tuned model's predictions are from the base's: KL divergence per token, in total and by layer.

The measure is that of arXiv 2405.18572. Layers are read by the base's final norm and head (logit lens). Both models
share the frozen layers' states, so that these layers run once, or not at all where their states are cached.
"""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from salf.cost import HEAD_ROWS
from salf.engine.answers import Embeddings, begin, start_of
from salf.engine.batches import Split, inference_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.models.walk import walk, walk_beginning
from salf.engine.runtime import Runtime


@dataclass(frozen=True)
class Shift:
    """Divergences on n examples in nats: means over each one's tokens after the shared prefix, [n]."""

    from_base: NDArray[np.float64]  # KL(tuned ‖ base), [n]
    to_base: NDArray[np.float64]  # KL(base ‖ tuned), [n]
    tokens: NDArray[np.float64]  # number of these tokens, [n]
    layers: NDArray[np.float64]  # KL(tuned ‖ base) at spaces 0..L, mean over all tokens, [L + 1]


@torch.no_grad()
def measure_shift(tuned: CausalModel, base: CausalModel, runtime: Runtime, split: Split, batch_tokens: int) -> Shift:
    """Compare two models' next-token distributions at every token of a split, over the whole vocabulary.

    Layers up to the start of the split's passes are the base's: their divergence is 0, and is not computed. On an
    answer side, only the tokens after the prompts count.
    """
    start = start_of(split, tuned)
    other = replace(start, model=base) if isinstance(start, Embeddings) else start
    sums, tokens = torch.zeros(2, len(split), dtype=torch.double), torch.zeros(len(split), dtype=torch.double)
    layers = np.zeros(tuned.depth + 1)
    with runtime.autocast():
        walked, of_base = (
            walk_beginning(model, one.beginning(), one.space, model.depth)
            for model, one in ((tuned, start), (base, other))
        )
        for index in inference_batches(split.lengths, batch_tokens):
            batch = split.batch(index).to(tuned.device)
            mine, packing = begin(start, batch, walked)  # [N, hidden]
            its = mine if other is start else other.states(batch)
            above = walk(tuned, mine, start.space, tuned.depth, packing)
            above_base = walk(base, its, start.space, base.depth, replace(packing, walked=of_base))
            spaces = zip(chain([mine], above), chain([its], above_base), strict=True)
            for space, (mine, its) in enumerate(spaces, start.space):
                if mine is not its:
                    layers[space] += float(_divergences(base, mine, base, its, back=False).sum())
            examples = torch.tensor(index)[(packing.slots // packing.longest).cpu()]  # [N]
            sums.index_add_(1, examples, _divergences(tuned, mine, base, its).cpu())
            tokens.index_add_(0, examples, torch.ones(len(examples), dtype=torch.double))
    from_base, to_base = (sums / tokens).numpy()
    return Shift(from_base, to_base, tokens.numpy(), layers / float(tokens.sum()))


def _divergences(
    one: CausalModel, states: Tensor, other: CausalModel, its_states: Tensor, *, back: bool = True
) -> Tensor:
    """Divergences between the predictions of two models from raw states [N, hidden]: one's from the other's, and back.

    Returns [2, N], without ``back`` [1, N].
    """
    parts = []
    for mine, its in zip(states.split(HEAD_ROWS), its_states.split(HEAD_ROWS), strict=True):
        p, q = (m.logits(part).float().log_softmax(-1) for m, part in ((one, mine), (other, its)))  # [m, vocabulary]
        parts.append(torch.stack([(p.exp() * (p - q)).sum(-1), *([(q.exp() * (q - p)).sum(-1)] if back else [])]))
    return torch.cat(parts, dim=1).clamp(min=0).double()
