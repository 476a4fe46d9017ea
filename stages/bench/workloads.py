"""Workloads to train and trace: a model and examples, the project's own or random ones of a given shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from salf.engine.batches import Example, read_examples
from salf.files import replacing_folder
from salf.records import BaseRecord, read_sizes
from salf.scale.inputs import published
from salf.settings import Device

OWN: Final = "own"
RATE: Final = 1e-6  # of every contender: weights stay finite however often they are trained on
_FIRST_TOKEN: Final = 3  # below it are the tokens that mark beginning, end and padding
_MOST_EXAMPLES: Final = 2048


@dataclass(frozen=True)
class Shape:
    """Random weights of a configuration, and random examples for it."""

    config: dict[str, Any]  # entries of a ``config.json``
    shared: int  # tokens that all examples begin with
    own: tuple[int, int]  # fewest and most tokens of an example after them


def _llama(layers: int, hidden: int, inner: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


SHAPES: Final = {
    "12x1024": Shape(_llama(12, 1024, 2816, 16, 32000), shared=0, own=(24, 72)),
    "6x384": Shape(_llama(6, 384, 1024, 6, 8000), shared=0, own=(16, 48)),
    "smollm2-135m": Shape(published()["smollm2-135m"]["config"], shared=97, own=(9, 40)),
    "llama-1b": Shape(published()["llama-1b"]["config"], shared=0, own=(64, 192)),
    **{f"prompts-{n}": Shape(_llama(6, 384, 1024, 6, 8000), shared=0, own=(n, n)) for n in (64, 256, 1024)},
}


@dataclass(frozen=True)
class Task:
    """A model with its examples, as every contender gets it; a run takes the first examples."""

    name: str
    origin: str
    folder: Path
    examples: Sequence[Example]
    shared: int  # P, tokens that all examples begin with
    batch_size: int
    device: Device

    @property
    def layers(self) -> int:
        """L, the model's decoder layers."""
        layers: int = AutoConfig.from_pretrained(self.folder).num_hidden_layers
        return layers

    def described(self, examples: int) -> dict[str, Any]:
        """The artifact's description of a run over the first examples."""
        config = AutoConfig.from_pretrained(self.folder)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        return {
            "model": self.name,
            "origin": self.origin,
            "layers": config.num_hidden_layers,
            "hidden": config.hidden_size,
            "vocabulary": config.vocab_size,
            "parameters": parameters,
            "examples": examples,
            "batch_size": self.batch_size,
            "mean_tokens": float(np.mean([len(example.inputs) for example in self.examples[:examples]])),
            "shared_tokens": self.shared,
        }


def task_of(name: str, folder: Path, batch_size: int, device: Device) -> Task:
    """A workload by its name; random weights are written into ``folder``."""
    if name == OWN:
        return own_task(batch_size, device)
    return random_task(name, SHAPES[name], folder / name, batch_size, device)


def own_task(batch_size: int, device: Device) -> Task:
    """The project's base model and training split; the examples are in an order that stays.

    Raises:
        UserError: they are not made yet.
    """
    folder, prepared = Path("data/base").absolute(), Path("data/prepared")
    base, examples = BaseRecord.load(folder), read_examples(prepared, "train")
    order = np.random.default_rng(0).permutation(len(examples))
    return Task(
        name=base.name,
        origin=f"{base.origin}; examples of the project's data",
        folder=folder,
        examples=[examples[i] for i in order],
        shared=read_sizes(prepared).shared_prefix_tokens,
        batch_size=batch_size,
        device=device,
    )


def random_task(name: str, shape: Shape, folder: Path, batch_size: int, device: Device) -> Task:
    """Random weights, written into ``folder``, and random examples."""
    config = AutoConfig.for_model(**{"max_position_embeddings": 4096, **shape.config})
    disable_progress_bar()
    torch.manual_seed(0)
    with replacing_folder(folder) as aside:
        AutoModelForCausalLM.from_config(config).save_pretrained(aside)
    examples = random_examples(_MOST_EXAMPLES, shape, seed=0)
    origin = "random weights and random tokens" + (", a shared beginning" if shape.shared else ", no shared beginning")
    return Task(name, origin, folder, examples, shape.shared, batch_size, device)


def random_examples(count: int, shape: Shape, seed: int) -> list[Example]:
    """Prompts of random tokens after the shape's shared prefix, with answers of one to three tokens."""
    rng = np.random.default_rng(seed)
    most = shape.config["vocab_size"]
    beginning = tuple(rng.integers(_FIRST_TOKEN, most, shape.shared).tolist())
    made = []
    for number in range(count):
        answer = tuple(rng.integers(_FIRST_TOKEN, most, rng.integers(1, 4)).tolist())
        own = rng.integers(shape.own[0], shape.own[1] + 1) - (len(answer) - 1)
        prompt = beginning + tuple(rng.integers(_FIRST_TOKEN, most, own).tolist())
        made.append(Example(str(number), None, "", "", prompt, answer, field_end=len(prompt)))
    return made
