"""Do a model's parts, run one by one, make the model? Asked of a few tokens."""

from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from salf.engine.models.attention import Packing
from salf.engine.models.causal_model import CausalModel
from salf.engine.models.walk import embed, run_to_answers

_SHARED: Final = 2
_LENGTHS: Final = (3, 5)  # behind the shared beginning: of two lengths, so that padding shows
_STEP: Final = 7919  # a prime: spreads the tokens over the vocabulary


@torch.no_grad()
def difference(model: CausalModel) -> float:
    """How far our logits are from the model's own at the ends of two prompts.

    Returns:
        see :func:`relative_difference`.
    """
    vocabulary, device = model.embedding.weight.shape[0], model.device
    tokens = (torch.arange(1, _SHARED + sum(_LENGTHS) + 1, device=device) * _STEP) % vocabulary
    beginning, *own = tokens.split([_SHARED, *_LENGTHS])
    packing = Packing.of(_LENGTHS, device, past=_SHARED)
    ends = torch.tensor(_LENGTHS, device=device).cumsum(0) - 1
    states = embed(model, tokens, packing.position_ids()[0])
    ours = model.logits(run_to_answers(model, states, 0, packing, ends))
    # Padded on the right, which a causal model never looks back from: one pass of the model's own for both.
    prompts = pad_sequence(
        [torch.cat([beginning, rest]) for rest in own], batch_first=True, padding_value=int(tokens[0])
    )
    last = torch.tensor(_LENGTHS, device=device) + _SHARED - 1
    theirs = model.network(prompts, use_cache=False).logits[torch.arange(len(own), device=device), last]
    return relative_difference(ours, theirs)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference of centred logits [N, vocabulary] over the norm of the second ones.

    NaN where either is not finite, or the second say the same of every token.
    """
    ours, theirs = (logits.double() - logits.double().mean(-1, keepdim=True) for logits in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())
