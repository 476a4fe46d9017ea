"""Vanilla fine-tuning: a fresh class head reads a prompt's last state (compared with label words in arXiv 2405.13181).

A linear map with a row for each class takes the place of the language model's head, as in transformers'
``...ForSequenceClassification``. An example's answer is its label's number, so that losses, scores and FLOPs are those
of a vocabulary of classes. The folder keeps the language model's own head, and the class head as ``score.weight``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from salf.engine.batches import Split
from salf.engine.models.causal_model import CausalModel, ClassHead
from salf.engine.rules import LabelTree, Rule
from salf.engine.training.forms import Weights
from salf.errors import UserError
from salf.files import read_json, write_json
from salf.settings import Head
from salf.shape import ModelShape

_SCORE: Final = "score.weight"  # as transformers calls it
_FILE: Final = "final.safetensors"


def class_rule(rule: Rule) -> LabelTree:
    """The same labels, each of which is its number, a token of its own."""
    assert isinstance(rule, LabelTree), "label words"
    return LabelTree.of({label: (number,) for number, label in enumerate(rule.labels)})


def of_classes(split: Split, rule: Rule) -> Split:
    """The same examples, answered by their label's number."""
    numbers = {label: number for number, label in enumerate(class_rule(rule).labels)}
    return replace(split, examples=[replace(one, answer_ids=(numbers[one.label or ""],)) for one in split.examples])


def class_shape(shape: ModelShape, rule: Rule) -> ModelShape:
    """The sizes of a model that answers by classes."""
    return replace(shape, vocabulary=len(class_rule(rule).labels), tied_head=False)


def add_class_head(model: CausalModel, rule: Rule, settings: Head, seed: int) -> None:
    """Put a class head in place: random rows as transformers draws them, or the embeddings of the label words.

    Raises:
        UserError: transformers has no such classifier of the model's type, or label words begin alike.
    """
    assert isinstance(rule, LabelTree), "label words"
    config = model.network.config.get_text_config()
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"model type {config.model_type!r}: transformers has no class head for it; leave out +head")
    if settings.init == "random":
        size, generator = (len(rule.labels), config.hidden_size), torch.Generator().manual_seed(seed)
        rows = getattr(config, "initializer_range", 0.02) * torch.randn(size, generator=generator)  # [classes, hidden]
    else:
        paths = sorted(rule.leaf, key=lambda path: rule.leaf[path])
        if any(len(path) > 1 for path in paths):
            raise UserError("finetune.head.init = words: label words begin with the same token; set it to random")
        rows = model.head.weight[[path[0] for path in paths]]
    model.set_head(ClassHead(model.head, rows, rule.labels))


def open_class_head(model: CausalModel, folder: Path) -> None:
    """Let a model that was opened from a folder answer by the class head in it."""
    with safe_open(folder / _FILE, framework="pt") as file:
        model.set_head(ClassHead(model.head, file.get_tensor(_SCORE)))


class ClassWeights(Weights):
    """Form ``head``: the network's own weights, and those of :func:`add_class_head`."""

    def save(self, folder: Path, _base: str, _revision: str | None) -> None:
        """Let transformers open the folder as a classifier."""
        kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(self.model.network.config)]
        labels = {str(number): label for number, label in enumerate(self.head.labels)}
        numbers = {label: number for number, label in enumerate(self.head.labels)}
        own = {"architectures": [kind.__name__], "id2label": labels, "label2id": numbers}
        write_json(folder / "config.json", {**read_json(folder / "config.json"), **own})

    def stored(self) -> dict[str, Tensor]:
        """The class head."""
        return {_SCORE: self.head.weight}

    def fold(self) -> set[str]:
        """Give the network its own head back, which did not train."""
        self.model.set_head(self.head.before)
        return self.names  # that head's among them: the class head is stored beside it

    @property
    def head(self) -> ClassHead:
        """The class head, until all is folded."""
        assert isinstance(self.model.head, ClassHead), "a class head"
        return self.model.head
