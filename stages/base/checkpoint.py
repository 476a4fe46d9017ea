"""A checkpoint's configuration and tensors under the names that transformers gives them today.

Checkpoints are older than conventions: GPT-2's say ``n_layer`` and hold its trunk without its name,
Pythia's call the head ``embed_out``. transformers understands all of them when it loads. The stages
read names and sizes without loading, so they get the current ones.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from stages.common.artifacts import read_json
from stages.common.command import UserError
from stages.common.models.shards import INDEX

_SIZES: Final = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "tie_word_embeddings")
_OLD_HEADS: Final = {"gpt_neox": "embed_out."}
# Masks and rotary angles that older versions stored; no weights.
_LEFTOVERS: Final = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")


def complete_config(raw: Mapping[str, Any], opened: PreTrainedConfig) -> dict[str, Any]:
    """``config.json`` with its sizes under transformers' own names, and defaults that were left out."""
    missing = {name: getattr(opened, name, None) for name in _SIZES if name not in raw}
    return {**raw, **{name: value for name, value in missing.items() if value is not None}}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make the model; none where the folder has none.

    A folder may hold others beside them: the same weights in their maker's own form (``consolidated``), adapters.

    Raises:
        UserError: the folder's index is damaged, or names a file that is not there.
    """
    if (folder / INDEX).exists():
        return _indexed(folder)
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _indexed(folder: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{folder / INDEX}: does not say which file holds which weight; bring the folder anew"
        ) from None
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder}: {INDEX} names {name}, which is not there; complete the folder")
    return [folder / name for name in names]


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files, each read when asked for."""

    def __init__(self, files: Iterable[Path], config: PreTrainedConfig) -> None:
        stored: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as shard:
                stored.update(dict.fromkeys(shard.keys(), file))
        self._place_of = {name: (stored[old], old) for old, name in current_names(stored, config).items()}

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._place_of[name]
        with safe_open(file, framework="pt") as shard:
            return shard.get_tensor(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place_of)

    def __len__(self) -> int:
        return len(self._place_of)


def current_names(stored: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, str]:
    """Stored name → today's name, of everything that is a weight."""
    network = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    trunk = f"{network.base_model_prefix}." if network else ""
    bare = not any(name.startswith(trunk) for name in stored)
    old_head = _OLD_HEADS.get(config.model_type)
    names = {}
    for name in stored:
        if _LEFTOVERS.search(name):
            continue
        if old_head and name.startswith(old_head):
            names[name] = "lm_head." + name.removeprefix(old_head)
        else:
            names[name] = f"{trunk}{name}" if bare and not name.startswith("lm_head.") else name
    return names
