"""Free answers: what the model writes, held against the reference."""

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig

from salf.engine.batches import Example
from salf.engine.models.adapter import CausalModel


@torch.no_grad()
def write_answers(
    model: CausalModel,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    longest: int,
    end: int,
    batch_tokens: int,
    advance: Callable[[int], None],
) -> list[str]:
    """Greedy answers of at most ``longest`` tokens, or what the context has left; prompts of a length batched together.

    ``end``: the token that an answer ends with (of a turn, in a chat); the model's own ends hold, too.
    """
    answers = [""] * len(examples)
    by_length: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        by_length.setdefault(len(example.prompt_ids), []).append(i)
    # Equal lengths need no padding, and an unpadded prompt is what the model was trained on.
    for length, members in sorted(by_length.items()):
        room = min(longest, _context(model, length + longest) - length)
        config = GenerationConfig(
            max_new_tokens=room, do_sample=False, eos_token_id=_ends(model, end), pad_token_id=end
        )
        size = max(1, batch_tokens // (length + room))
        for at in range(0, len(members), size):
            index = members[at : at + size]
            ids = torch.tensor([examples[i].prompt_ids for i in index], device=model.device)
            written = model.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            for i, row in zip(index, written[:, length:].tolist(), strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=True)
            advance(len(index))
    return answers


def _context(model: CausalModel, otherwise: int) -> int:
    """Longest sequence of the model; ``otherwise`` where its configuration names none."""
    return int(getattr(model.network.config, "max_position_embeddings", None) or otherwise)


def _ends(model: CausalModel, end: int) -> list[int]:
    own = model.network.config.eos_token_id
    return sorted({end, *(own if isinstance(own, list) else [own] if own is not None else [])})


def exact_match(answer: str, reference: str, marker: str | None) -> bool:
    """Whether an answer says what the reference says, white space aside.

    Args:
        answer: what the model wrote.
        reference: the reference answer.
        marker: only what follows its last occurrence is compared (gsm8k: ``####``); ``None``: all of it.
    """
    return _final(answer, marker) == _final(reference, marker)


def _final(text: str, marker: str | None) -> str:
    if marker is not None:
        text = text.rpartition(marker)[2]
    return " ".join(text.split())
