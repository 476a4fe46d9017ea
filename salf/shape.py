"""A model's sizes, and how many parameters they make. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from salf.config import Config
from salf.families import FAMILIES
from salf.sizes import LayerSizes, layer_sizes


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder whose layers are all alike.

    ``packed``: rows run without padding, and the last layer at answer positions alone.
    """

    layers: int  # L
    hidden: int  # H, width of the states
    heads: int  # of queries
    kv_heads: int  # each shared by heads / kv_heads query heads
    head_dim: int
    vocabulary: int  # V
    tied_head: bool  # the head is the embedding matrix
    layer: LayerSizes
    packed: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes out of a ``config.json``; a model type outside the table is taken to be built like Llama.

        Raises:
            UserError: an entry is missing, or the family's cost is not modelled; says which and why.
        """
        sizes = Config(config)
        return cls(
            layers=sizes.number("num_hidden_layers", "n_layer"),
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            vocabulary=sizes.number("vocab_size"),
            tied_head=sizes.tied_head,
            layer=layer_sizes(config),
            packed=sizes.kind in FAMILIES and FAMILIES[sizes.kind].packed,
        )

    @property
    def attention_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads (and of all value heads) together."""
        return self.kv_heads * self.head_dim

    @property
    def adapted_maps(self) -> list[str]:
        """Names of the linear maps that take adapters."""
        return list(dict.fromkeys(part.name for part in self.layer.maps if part.adapted))

    @property
    def linear_products(self) -> int:
        """Multiply-adds of a layer's linear maps for one token."""
        return sum(part.products for part in self.layer.maps)

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        return sum(part.parameters for part in self.layer.maps) + self.layer.norms

    @property
    def embedding_parameters(self) -> int:
        """Parameters that make space 0: the embedding matrix, and learned positions or a norm where there are any."""
        return self.vocabulary * self.hidden + self.layer.inputs

    @property
    def norm_parameters(self) -> int:
        """Parameters of the final norm."""
        return self.layer.final_norm

    @property
    def head_parameters(self) -> int:
        """Parameters of the head alone: of a tied one, which is the embedding matrix, its bias if it has one."""
        return (not self.tied_head) * self.vocabulary * self.hidden + self.layer.head_bias * self.vocabulary

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        return (
            self.embedding_parameters
            + self.layers * self.layer_parameters
            + self.norm_parameters
            + self.head_parameters
        )

    def trained_parameters(self, boundary: int, *, embeddings: bool = True) -> int:
        """Parameters that train when layers 1..boundary are frozen; 0 freezes nothing, embeddings included.

        From boundary 1 on, or without ``embeddings``, these are frozen, and a tied head with them.
        """
        if boundary == 0 and embeddings:
            return self.parameters
        own_head = 0 if self.tied_head else self.head_parameters
        return (self.layers - boundary) * self.layer_parameters + self.norm_parameters + own_head

    def lora_parameters(self, boundary: int, rank: int) -> int:
        """Parameters of rank-``rank`` adapters on the linear maps of layers boundary+1..L."""
        widths = sum(part.wide + part.high for part in self.layer.maps if part.adapted)
        return (self.layers - boundary) * rank * widths
