"""Memory on paper against what PyTorch holds during real steps, tensor by tensor."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example
from salf.engine.models.adapter import CausalModel
from salf.families import family_of
from salf.records import PreparedSizes, SplitSize
from salf.scale.prediction import PRECISIONS, memory
from salf.shape import ModelShape
from salf.workload import cost_model
from tests.engine.models.tiny import tiny_network

pytestmark = pytest.mark.usefixtures("fused_attention")

ROWS, TOKENS, ANSWER, LAYERS = 8, 64, 16, 6
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": LAYERS,
    "head_dim": 32,
    "vocab_size": 512,
}
KINDS = {
    "llama": SIZES,
    "llama-untied": {**SIZES, "tie_word_embeddings": False},
    "qwen3": SIZES,
    "gpt2": {**SIZES, "head_dim": None, "n_inner": 352},
    "gpt_neox": {**SIZES, "head_dim": None},
    "olmo2": {**SIZES, "head_dim": None},
}
EXAMPLES = [
    Example(str(n), None, "", "", tuple(range(3, 4 + TOKENS - ANSWER)), tuple(range(3, 3 + ANSWER)))
    for n in range(ROWS)
]


class Held(TorchDispatchMode):
    """Bytes of all tensors that are alive, those there before included; ``most`` at any moment."""

    def __init__(self, *before):
        super().__init__()
        self.seen, self.now, self.most = WeakIdKeyDictionary(), 0, 0
        self.see(before)

    def see(self, made):
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen[storage] = None
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.most = max(self.most, self.now)

    def gone(self, size):
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.see(made)
        return made


def opened(kind, boundary, dtype=torch.float32):
    """A model of which the layers above the boundary train."""
    network = tiny_network(kind.partition("-")[0], **KINDS[kind]).to(dtype)
    model = CausalModel(network, family_of(network.config.model_type))
    network.requires_grad_(boundary == 0)
    for part in [*model.layers[boundary:], model.norm, *[model.head] * (not model.tied_head)]:
        part.requires_grad_(True)
    return model


def held(model, boundary, precision):
    """The most bytes of tensors during the second of two steps, when AdamW has its moments."""
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    batch = Batch.of(EXAMPLES, range(ROWS), 1)
    embeddings = Embeddings.after(model, EXAMPLES[0].prompt_ids[:1])
    start = embeddings if boundary == 0 else states_at(model, embeddings, batch, boundary)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "mixed"):
            logits = training_logits(model, start, batch)
        torch.nn.functional.cross_entropy(logits.float(), batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with Held(
        list(model.network.parameters()), [list(state.values()) for state in optimizer.state.values()]
    ) as tensors:
        step()
    return tensors.most


def states_at(model, embeddings, batch, boundary):
    """Where a cached fine-tune begins; the states are random, for they change no size."""
    rows = len(batch.ids) + 1
    states = torch.randn(rows, model.embedding.weight.shape[1], dtype=model.embedding.weight.dtype)

    class Start:
        space, shared = boundary, 1

        @staticmethod
        def states(_batch, **_joined):
            return states

    return Start


def predicted(model, boundary, precision):
    train = SplitSize(rows=ROWS, tokens=ROWS * TOKENS, answer_tokens=ROWS * ANSWER)
    work = cost_model(PreparedSizes(splits={"train": train}, shared_prefix_tokens=1), 1, ROWS)
    shape = ModelShape.from_config(model.network.config.to_dict())
    return memory(shape, work, boundary, PRECISIONS[precision])


# What is known to be kept besides: GPT-2's activation function in five operations.
TOLERANCE = {"gpt2": 0.25}


@pytest.mark.parametrize("boundary", [0, 3, 5, 6])
@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "llama")]
)
def test_the_highest_memory_is_what_pytorch_holds(kind, boundary):
    model = opened(kind, boundary)
    measured = held(model, boundary, "float32")
    assert predicted(model, boundary, "float32").peak == pytest.approx(measured, rel=TOLERANCE.get(kind, 0.2))


@pytest.mark.slow
@pytest.mark.parametrize("boundary", [0, 3])
def test_mixed_precision_and_bfloat16(boundary):
    for precision, dtype in (("mixed", torch.float32), ("bfloat16", torch.bfloat16)):
        model = opened("llama", boundary, dtype)
        assert predicted(model, boundary, precision).peak == pytest.approx(held(model, boundary, precision), rel=0.15)
