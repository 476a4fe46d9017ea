"""Workloads to train and trace: a model folder and its examples, the real task or random weights of a given shape."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ruamel.yaml import YAML
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import stages
from salf.engine.batches import Example, read_examples
from salf.errors import UserError
from salf.files import read_json, replacing_folder
from salf.records import read_sizes
from salf.settings import Device
from stages.common.benchmark import Workload
from stages.common.params import PARAMS_FILE

EMBEDDED: Final = "embedded"
RATE: Final = 1e-6  # of every contender: weights stay finite however often they are trained on
_FIRST_TOKEN: Final = 3  # below it are the tokens that mark beginning, end and padding
_MOST_EXAMPLES: Final = 2048


@dataclass(frozen=True)
class Shape:
    """Random weights of a Llama configuration, and random examples for it."""

    config: dict[str, Any]  # entries of a ``config.json``
    shared: int  # tokens that all examples begin with
    own: tuple[int, int]  # fewest and most tokens of an example after them


_SIZES: Final = (
    *("num_hidden_layers", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)


def _llama(*sizes: int, tie_word_embeddings: bool = False, **more: Any) -> dict[str, Any]:
    return dict(zip(_SIZES, sizes, strict=True)) | {"tie_word_embeddings": tie_word_embeddings} | more


# The last two have the numbers of published configurations: SmolLM2-135M and Llama 3.2 1B.
SHAPES: Final = {
    "12x1024": Shape(_llama(12, 1024, 2816, 16, 16, 32000), shared=0, own=(24, 72)),
    "6x384": Shape(_llama(6, 384, 1024, 6, 6, 8000), shared=0, own=(16, 48)),
    "smollm2-135m": Shape(
        _llama(30, 576, 1536, 9, 3, 49152, tie_word_embeddings=True, rope_theta=1e5), shared=97, own=(9, 40)
    ),
    "llama-1b": Shape(
        _llama(16, 2048, 8192, 32, 8, 128256, tie_word_embeddings=True, head_dim=64, rope_theta=5e5),
        shared=0,
        own=(64, 192),
    ),
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

    def described(self, examples: int) -> Workload:
        """The artifact's description of a run over the first examples."""
        config = AutoConfig.from_pretrained(self.folder)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        return Workload(
            model=self.name,
            origin=self.origin,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            parameters=parameters,
            examples=examples,
            batch_size=self.batch_size,
            mean_tokens=float(np.mean([len(example.inputs) for example in self.examples[:examples]])),
            shared_tokens=self.shared,
        )


def embedded_task(folder: Path) -> Path:
    """Make the embedded model and its prepared data in ``folder``: parameters, ``base`` and ``prepared``."""
    folder.mkdir(parents=True, exist_ok=True)
    yaml = YAML()
    params = yaml.load(PARAMS_FILE.read_text(encoding="utf-8"))
    params["model"]["source"], params["data"]["source"] = "embedded", "docstrings"
    with (folder / PARAMS_FILE.name).open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    for out, options in {"base": ["base"], "prepared": ["prepare", "--base", "base"]}.items():
        timed(stage_command(*options, "--out", out), folder)
    return folder


def real_task(folder: Path, batch_size: int, device: Device) -> Task:
    """The training split of :func:`embedded_task`, in a random order that is always the same."""
    prepared, model = folder / "prepared", read_json(folder / "base/base.json")
    examples = read_examples(prepared, "train")
    order = np.random.default_rng(0).permutation(len(examples))
    return Task(
        name=model["name"],
        origin=f"{model['origin']}; examples of its prepared task",
        folder=folder / "base",
        examples=[examples[i] for i in order],
        shared=read_sizes(prepared).shared_prefix_tokens,
        batch_size=batch_size,
        device=device,
    )


def random_task(name: str, shape: Shape, folder: Path, batch_size: int, device: Device) -> Task:
    """Random weights, written into ``folder``, and random examples."""
    _write_model(shape, folder)
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


def _write_model(shape: Shape, folder: Path) -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=4096, **shape.config)
    disable_progress_bar()
    torch.manual_seed(0)
    with replacing_folder(folder) as aside:
        AutoModelForCausalLM.from_config(config).save_pretrained(aside)


def stage_command(stage: str, *options: str) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", f"stages.{stage}", *options]


def timed(command: Sequence[str], folder: Path | None = None) -> float:
    """Seconds of a command, in a folder.

    Raises:
        UserError: it failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(stages.__path__[0]).parent)}  # stages are found in any folder
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {' '.join(done.stderr.split())[-500:]}")
    return time.perf_counter() - began
