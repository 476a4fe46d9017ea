"""One forward pass over the sample's prompts: what every space holds, and how far every layer moves it.

Only the prompts are read, never an answer's tokens: whatever is read off a state was not written into it. The
tokens that all prompts begin with are walked once and left out of all means, since they say nothing of the data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from salf.engine.answers import Embeddings
from salf.engine.batches import Batch, Example, inference_batches
from salf.engine.models.adapter import CausalModel
from salf.engine.models.walk import Beginning, behind, embed, walk, walk_beginning
from salf.engine.progress import progress
from salf.engine.runtime import Runtime
from salf.errors import UserError

States = NDArray[np.float32]


@dataclass(frozen=True)
class PromptStates:
    """What a forward pass over n prompts leaves.

    Attributes:
        answer: raw states at the position that predicts the answer's first token, [L+1, n, H].
        pooled: raw states averaged over each prompt's own tokens, [L+1, n, H].
        cosines: cos(h_{k-1}, h_k) averaged over all prompts' own tokens, by layer, [L].
    """

    answer: States
    pooled: States
    cosines: NDArray[np.float64]


@torch.no_grad()
def prompt_states(
    model: CausalModel, runtime: Runtime, examples: Sequence[Example], shared: int, batch_tokens: int
) -> PromptStates:
    """Walk the prompts of ``examples``, which share their first ``shared`` tokens, through all layers.

    Raises:
        UserError: a state is not finite.
    """
    prompts = [replace(example, answer_ids=example.answer_ids[:1]) for example in examples]
    shape = (model.depth + 1, len(prompts), model.embedding.weight.shape[1])
    answer, pooled = np.empty(shape, np.float32), np.empty(shape, np.float32)
    cosines, tokens = np.zeros(model.depth), 0
    with runtime.autocast(), progress("signals", len(prompts), "examples") as advance:
        start = Embeddings.behind(model, prompts[0].prompt_ids[:shared])
        beginning = walk_beginning(model, start.beginning(), 0, model.depth)
        for picks in inference_batches([len(prompt.inputs) - shared for prompt in prompts], batch_tokens):
            batch = Batch.of(prompts, picks, shared).to(model.device)
            before: Tensor | None = None
            for space, states in enumerate(_spaces(model, batch, shared, beginning)):
                answer[space, picks] = states[batch.answers].float().cpu().numpy()
                pooled[space, picks] = _means(states, batch.lengths).cpu().numpy()
                if before is not None:
                    cosines[space - 1] += _cosines(before, states)
                before = states
            tokens += sum(batch.lengths)
            advance(len(picks), "")
    _require_finite(answer, pooled)
    return PromptStates(answer, pooled, cosines / tokens)


def _spaces(model: CausalModel, batch: Batch, shared: int, beginning: Beginning | None) -> Iterator[Tensor]:
    """The spaces 0..L of a batch's own tokens, [N, H] each."""
    states = embed(model, batch.ids, batch.positions(shared))
    yield states
    yield from walk(model, states, 0, model.depth, behind(batch.lengths, model.device, beginning))


def _means(states: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean state of each sequence, [B, H]."""
    return torch.stack([part.float().mean(0) for part in states.split(list(lengths))])


def _cosines(before: Tensor, after: Tensor) -> float:
    """Sum of the tokens' cosines."""
    return float(nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).double().sum())


def _require_finite(*states: States) -> None:
    for each in states:
        if not np.isfinite(each).all():
            space = int(np.argwhere(~np.isfinite(each))[0, 0])
            raise UserError(
                f"a state of space {space} is not a number: the model overflows in this precision; "
                "set device.dtype to float32"
            )
