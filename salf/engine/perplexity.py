"""Perplexity of any opened model over text blocks: see :mod:`salf.blocks`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from salf.blocks import block_id, cut_blocks, start_of
from salf.engine.answers import Reader
from salf.engine.batches import Example, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import Runtime


def perplexity(
    model: CausalModel, runtime: Runtime, blocks: Sequence[Example], batch_tokens: int = 2048
) -> tuple[float, int]:
    """Perplexity over all predicted tokens of blocks together, and the number of these; ``batch_tokens`` in a pass."""
    answers = Reader(model, runtime, None, batch_tokens).read(Split(blocks, 0))
    tokens = [len(one.token_losses) for one in answers]
    return float(np.exp(np.average([one.loss for one in answers], weights=tokens))), sum(tokens)


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
