"""Small trainings on random models, as fine-tuning runs them."""

import numpy as np
import torch

from salf.engine.batches import Example, Split
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import choose_runtime
from salf.engine.training.checkpoint import Training
from salf.engine.training.costs import Costs
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import train
from salf.engine.training.scope import LayerDraws, Scope
from salf.engine.training.step import Job, Stepper
from salf.families import family_of
from salf.methods import Method
from salf.settings import Device, Finetune
from salf.shape import ModelShape
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.engine.models.tiny import tiny_network

SHARED = 3
DEPTH = 4
RUNTIME = choose_runtime(Device(kind="cpu", dtype="float32"))


class KilledError(Exception):
    """In the place of a signal."""


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


def scope_above(boundary: int, **options: object) -> Scope:
    return Scope(DEPTH, boundary, tuple(range(boundary + 1, DEPTH + 1)), **options)


def trainable(boundary: int, *, tied: bool = True, draws: LayerDraws | None = None, **overrides) -> Trainable:
    """A model made ready for its weights' training, and compared with what is to train, named by hand."""
    model = CausalModel(tiny_network(tie_word_embeddings=tied, **overrides), family_of("llama"))
    made = Trainable.of(model, Method("full"), scope_above(boundary, draws=draws), params(), seed=1, steps=10**3)
    expected = [*model.layers[boundary:].parameters(), *model.norm.parameters()]
    expected += [model.embedding.weight] * (boundary == 0) + [model.head.weight] * (not tied)
    assert {*map(id, made.parameters)} == {id(p) for p in expected}
    assert {id(p) for p in model.network.parameters() if p.requires_grad} == {*map(id, made.parameters)}
    return made


def job_of(made: Trainable, examples: list[Example], settings: Finetune, start=None, **changes) -> Job:
    split = Split(examples, SHARED, start)
    shape = ModelShape.from_config(made.model.network.config.to_dict())
    facts = {
        "name": "test",
        "trainable": made,
        "runtime": RUNTIME,
        "training": split,
        "validation": split,
        "rule": None,
        "costs": Costs(shape, made.scope, made.method.technique(settings)),
        "settings": settings,
        "rate": 0.01,
        "seed": 1,
    }
    return Job(**{**facts, **changes})


def run(made: Trainable, examples: list[Example], settings: Finetune, start=None, **changes) -> Training:
    return train(job_of(made, examples, settings, start, **changes))


def stepper_of(made: Trainable, examples: list[Example], settings: Finetune, start=None, **changes) -> Stepper:
    return Stepper(job_of(made, examples, settings, start, **changes))


def killed_at(monkeypatch, step: int) -> None:
    """Have training die before a step, whose number counts from 0."""
    take = Stepper.take

    def fatal(self, parts, rate, number):
        if number == step:
            raise KilledError
        return take(self, parts, rate, number)

    monkeypatch.setattr(Stepper, "take", fatal)


def weights(made: Trainable) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.model.network.named_parameters()}


def assert_equal_weights(left: Trainable, right: Trainable) -> None:
    for name, weight in weights(left).items():
        assert torch.equal(weights(right)[name], weight), name
