"""A ``config.json``, whose entries go by several names. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from salf.errors import UserError
from salf.families import FAMILIES, Build


@dataclass(frozen=True)
class Config:
    """The sizes in a ``config.json``, under today's names or older ones."""

    raw: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The model type."""
        return str(self.raw.get("model_type"))

    @property
    def build(self) -> Build:
        """How layers are built; a model type outside the table is taken to be built like Llama."""
        return FAMILIES[self.kind].build if self.kind in FAMILIES else Build()

    @property
    def parallel(self) -> bool:
        """Whether attention and feed-forward part both read the layer's input."""
        return self.flag(*self.build.parallel) or self.flag("new_decoder_architecture")

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of the entries that is there."""
        found = next((self.raw[name] for name in names if self.raw.get(name) is not None), default)
        if found is None:
            raise UserError(f"config.json: no entry {names[0]!r}; is it a decoder-only language model's?")
        return int(found)

    def flag(self, name: str, default: bool = False) -> bool:
        """An entry that says yes or no."""
        found = self.raw.get(name)
        return default if found is None else bool(found)

    def share(self, name: str, default: float) -> float:
        """An entry from 0 to 1."""
        found = self.raw.get(name)
        return default if found is None else float(found)

    @property
    def hidden(self) -> int:
        """H."""
        return self.number("hidden_size", "n_embd", "n_embed")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.number("num_attention_heads", "n_head")

    @property
    def kv_heads(self) -> int:
        """Key-value heads."""
        if self.build.kv_heads:
            return self.build.kv_heads(self)
        return self.heads if self.build.plain_heads else self.number("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        default = self.hidden // self.heads
        return default if self.build.plain_heads else self.number("head_dim", default=default)

    @property
    def tied_head(self) -> bool:
        """Whether the head is the embedding matrix; some families do not say so where it is."""
        return self.flag("tie_word_embeddings", default=self.build.tied_head)
