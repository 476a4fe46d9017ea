"""A small task of random weights, as every contender gets it."""

import pytest

from salf.settings import Device
from stages.bench.workloads import Shape, random_task

SHAPE = Shape(
    {
        "model_type": "llama",
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 97,
        "tie_word_embeddings": True,
    },
    shared=3,
    own=(5, 12),
)
CPU = Device(kind="cpu", dtype="float32")


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    return random_task("tiny", SHAPE, tmp_path_factory.mktemp("bench") / "tiny", batch_size=4, device=CPU)
