"""Small trainings on random models, as fine-tuning runs them."""

import numpy as np
import torch

from salf.cost import ModelShape
from salf.engine.answers import Embeddings, Reader
from salf.engine.batches import Example
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import choose_runtime
from salf.engine.training.costs import Costs
from salf.engine.training.loop import train
from salf.engine.training.processes import ALONE
from salf.engine.training.trainable import Trainable
from salf.engine.training.validation import Split
from salf.families import family_of
from salf.settings import Device, Finetune
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.engine.models.tiny import tiny_network

SHARED = 3
RUNTIME = choose_runtime(Device(kind="cpu", dtype="float32"))


def params(**changes) -> Finetune:
    defaults = {"epochs": 2, "batch_size": 4, "evaluations_per_epoch": 1, "clip_norm": 1.0, "weight_decay": 0.1}
    return load_params(PROJECT / "params.yaml").finetune.model_copy(update={**defaults, **changes})


def made_examples() -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for n in range(12):
        prompt = (5, 6, 7, *rng.integers(10, 90, size=3 + n % 4))
        made.append(Example(str(n), None, "", "", prompt, tuple(rng.integers(3, 90, size=1 + n % 2))))
    return made


def trainable(boundary, *, tied=True, draws=None, **overrides) -> Trainable:
    """Frozen and unfrozen by hand: what the plan is to come to; ``draws``: of the layers, which train when."""
    model = CausalModel(tiny_network(tie_word_embeddings=tied, **overrides), family_of("llama"))
    model.network.requires_grad_(False)
    model.layers[boundary:].train()
    parameters = [*model.layers[boundary:].parameters(), *model.norm.parameters()]
    if boundary == 0:
        parameters.append(model.embedding.weight)
    if not tied:
        parameters.append(model.head.weight)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return Trainable(model, parameters, boundary, None, draws=draws)


def start_of(made, examples):
    return Embeddings.behind(made.model, examples[0].prompt_ids[:SHARED])


def run(made, examples, start, settings, rate=0.01, checkpoint=None, processes=ALONE, runtime=RUNTIME, epochs=None):
    shape = ModelShape.from_config(made.model.network.config.to_dict())
    split = Split(examples, start)
    reader = Reader(made.model, runtime, None, batch_tokens=64)
    costs = Costs(shape, made.boundary, "weights", 8)
    return train(made, runtime, split, split, reader, costs, settings, rate, 1, "test", checkpoint, processes, epochs)


def weights(made):
    return {name: parameter.detach().clone() for name, parameter in made.model.network.named_parameters()}


def assert_equal_weights(left, right):
    for name, weight in weights(left).items():
        assert torch.equal(weights(right)[name], weight), name
