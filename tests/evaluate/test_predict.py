"""Frozen layers are the base's: their states are computed once for all models, and change no answer."""

import numpy as np
import pytest
import torch

from salf.engine.batches import Example, Split
from salf.engine.models.adapter import open_model
from salf.engine.runtime import choose_runtime
from salf.engine.techniques.roste import Quantised
from salf.engine.training.scope import Scope
from salf.records import PreparedLabel, PreparedRecord
from salf.settings import Caching, Device
from stages.common.params import load_params
from stages.evaluate.predict import Predictor, frozen_layers
from tests.conftest import PROJECT
from tests.engine.models.tiny import save_tiny

SHARED = 3
BASE = {
    "embedding.safetensors": "e",
    "layer-01.safetensors": "1",
    "layer-02.safetensors": "2",
    "final.safetensors": "f",
}
SHARDS = {"embedding.safetensors": "e", **{f"layer-0{n}.safetensors": str(n) for n in range(1, 5)}}


@pytest.mark.parametrize(
    ("changed", "frozen"),
    [
        ([], 2),
        (["final"], 2),
        (["layer-02", "final"], 1),
        (["layer-01"], 0),
        (["embedding"], 0),  # the same layers on other embeddings see other states
    ],
)
def test_frozen_layers_are_those_below_the_first_change(changed, frozen):
    shards = {**BASE, **{f"{unit}.safetensors": "new" for unit in changed}}
    assert frozen_layers(shards, BASE) == frozen


def made_predictor(folder, runtime, mode="memory"):
    """A predictor of two labels for nine examples."""
    rng = np.random.default_rng(0)
    test = [
        Example(str(n), "ab"[n % 2], "", "", (5, 6, 7, *rng.integers(10, 90, size=2 + n % 3)), (50 + n % 2,))
        for n in range(9)
    ]
    labels = [PreparedLabel(label=name, word=name, token_ids=[50 + at]) for at, name in enumerate("ab")]
    known = {"task": "classification", "end_token_id": None, "choice_score": None}
    meta = PreparedRecord.model_construct(labels=labels, shared_prefix_tokens=SHARED, **known)
    cache = Caching(cache=mode, cache_folder=str(folder / "cache"), cache_gib=1)
    params = load_params(PROJECT / "params.yaml").evaluate
    return Predictor(runtime, params, meta, folder, SHARDS, cache, {"test": Split(test, SHARED)})


@pytest.mark.parametrize("frozen", [2, None])
def test_a_quantised_model_is_scored_as_it_trained(tmp_path, frozen):
    runtime, folder = choose_runtime(Device(kind="cpu", dtype="float32")), save_tiny(tmp_path / "tiny")
    scored = made_predictor(tmp_path, runtime)
    plain = scored.predict(scored.open(folder, "plain", frozen), "test")
    model = open_model(folder, runtime.device)
    asked = load_params(PROJECT / "params.yaml").finetune
    form = Quantised(model, Scope.above(2, 4), asked, 1)
    with torch.no_grad():
        losses = [
            float(
                torch.nn.functional.cross_entropy(
                    model.network(torch.tensor([e.prompt_ids])).logits[0, -1:], torch.tensor(e.answer_ids)
                )
            )
            for e in scored.splits["test"].examples
        ]
    form.save(folder, "", None)
    found = scored.predict(scored.open(folder, "quantised", frozen), "test")
    np.testing.assert_allclose(found.loss, losses, rtol=1e-3, atol=1e-3)
    assert np.abs(found.loss - plain.loss).max() > 0.01


@pytest.mark.parametrize("mode", ["disk", "memory", "off"])
def test_sharing_the_frozen_layers_states_changes_no_answer(tmp_path, mode):
    folders = [save_tiny(tmp_path / "first"), save_tiny(tmp_path / "second")]
    runtime = choose_runtime(Device(kind="cpu", dtype="float32"))
    second = open_model(folders[1], runtime.device)
    with torch.no_grad():
        for parameter in second.layers[2:].parameters():
            parameter.mul_(1.3)
    second.network.save_pretrained(folders[1])

    def predictor():
        return made_predictor(tmp_path, runtime, mode)

    sharing = predictor()
    for folder in folders:
        shared, alone = (
            one.predict(one.open(folder, "some", frozen), "test") for one, frozen in ((sharing, 2), (predictor(), None))
        )
        assert shared.predicted == alone.predicted
        # The same passes over the same examples: frozen layers first or all layers at once.
        np.testing.assert_array_equal(shared.loss, alone.loss)
    assert list(sharing.prefixes) == [("test", 2)]
    again = predictor()
    again.predict(again.open(folders[0], "again", frozen=2), "test")
    assert again.prefixes["test", 2].origin == {"disk": "reused", "memory": "computed", "off": "off"}[mode]
