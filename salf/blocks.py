"""Plain text as blocks of tokens: what task ``text`` learns, and what perplexity is measured on.

A document's tokens are cut into blocks of one length, and no block holds two documents. A block begins with what the
tokenizer puts before every text (BOS), and one that continues a document with the token before it: its context.
All other tokens are predicted. So every token of a document is predicted exactly once, except the first one where
nothing is put before it. What a document leaves at its end, or a short document, is a shorter block.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from salf.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_MARK: Final = "#"  # between a document's id and a block's number


class Block(NamedTuple):
    """A part of a document: token ids and text of the context, and of what is predicted."""

    context_ids: list[int]
    ids: list[int]
    context: str
    text: str


def start_of(tokenizer: "Tokenizer") -> list[int]:
    """The tokens that a tokenizer puts before a text (BOS), as opposed to at its end."""
    plain, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    return next((full[:at] for at in range(len(full)) if full[at : at + len(plain)] == plain), [])


def cut_blocks(text: str, encoded: "Encoding", start: list[int], length: int) -> Iterator[Block]:
    """Cut a document, encoded without special tokens, into blocks of ``length`` tokens, context included.

    A ``UserError`` says that a block has no room for a token after its context.
    """
    ids, spans = encoded.ids, encoded.offsets
    if length < len(start) + 2:
        raise UserError(f"a block of {length} tokens holds nothing after its context; {len(start) + 2} or more do")
    at = 0 if start else 1
    while at < len(ids):
        before = slice(max(at - 1, 0), at)
        own = slice(at, at + length - len(start) - (at > 0))
        texts = (text[held[0][0] : held[-1][1]] if (held := spans[part]) else "" for part in (before, own))
        yield Block(start + ids[before], ids[own], *texts)
        at = own.stop


def block_id(document: str, number: int) -> str:
    """The id of a document's block."""
    return f"{document}{_MARK}{number:05d}"


def document_of(block: str) -> str:
    """The document of a block's id."""
    return block.rpartition(_MARK)[0]
