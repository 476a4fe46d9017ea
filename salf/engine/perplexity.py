"""Perplexity of any opened model over text blocks: see :mod:`salf.blocks`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from salf.blocks import block_id, cut_blocks, start_of
from salf.engine.answers import Reader
from salf.engine.batches import Example, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime


class TextLosses(NamedTuple):
    """A model's losses on n blocks."""

    losses: NDArray[np.float64]  # mean −log probability of each block's predicted tokens, in nats, [n]
    tokens: NDArray[np.int64]  # number of these tokens, [n]

    @property
    def perplexity(self) -> float:
        """Perplexity over all predicted tokens together."""
        return float(np.exp(np.average(self.losses, weights=self.tokens)))


def read_text(model: CausalModel, runtime: Runtime, blocks: Sequence[Example], batch_tokens: int = 2048) -> TextLosses:
    """Read blocks, of ``text_examples`` or of a prepared split; ``batch_tokens`` in one pass, padding included."""
    answers = Reader(model, runtime, None, batch_tokens).read(Split(blocks, 0))
    return TextLosses(np.array([one.loss for one in answers]), np.array([len(one.token_losses) for one in answers]))


def text_examples(folder: Path, documents: Sequence[str], length: int) -> list[Example]:
    """Blocks of documents, by the tokenizer in a model's folder; ``length`` of a block in tokens, context included.

    A ``UserError`` says that a block has no room for a token after its context.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    start, encoded = start_of(tokenizer), tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return [
        Example(block_id(str(at), number), None, block.text, block.text, tuple(block.context_ids), tuple(block.ids))
        for at, (text, tokens) in enumerate(zip(documents, encoded, strict=True))
        for number, block in enumerate(cut_blocks(text, tokens, start, length))
    ]
