"""Divergences against a naive computation from Hugging Face's own full logits, one example at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from salf.engine.batches import Example, Split
from salf.engine.boundary_cache.prompts import answer_side, cache_prompts
from salf.engine.boundary_cache.states import FrozenLayers, cache_boundary
from salf.engine.models.causal_model import CausalModel
from salf.engine.runtime import choose_runtime
from salf.engine.shift import measure_shift
from salf.families import family_of
from salf.settings import Device
from tests.engine.models.tiny import tiny_network

RUNTIME = choose_runtime(Device(kind="cpu", dtype="float32"))
SHARED, DEPTH = 3, 4
EXAMPLES = [
    Example(str(n), None, "", "", (5, 6, 7, *range(10 + 9 * n, 12 + 10 * n), 4), (40 + n, 50)[: 1 + n % 2])
    for n in range(5)
]
ENDS = tuple(len(example.prompt_ids) - 1 for example in EXAMPLES)


def apart(network, kind="llama"):
    return CausalModel(network, family_of(kind))


def networks(kind, boundary):
    """A base, and a model with other weights in layers boundary+1..L and norm; at boundary 0 in its embedding, too."""
    base, tuned = tiny_network(kind), tiny_network(kind, seed=1)
    family = family_of(kind)
    for name, weights in base.state_dict().items():
        layer = name.removeprefix(f"{family.layers}.").split(".")[0]
        frozen = int(layer) < boundary if name.startswith(f"{family.layers}.") else family.before_layers(name)
        if frozen and boundary:
            tuned.state_dict()[name].copy_(weights)
    return base, tuned


def spaces(network, ids):
    """Raw spaces 0..L of all tokens: inputs of every layer, and the last one's output."""
    found = []
    layers = network.get_submodule(family_of(network.config.model_type).layers)
    handles = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0][0])) for layer in layers]
    norm = network.get_submodule(family_of(network.config.model_type).norm)
    handles.append(norm.register_forward_pre_hook(lambda _, given: found.append(given[0][0])))
    with torch.no_grad():
        logits = network(ids, use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return found, logits


def kl(one, other):
    p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def naive(base, tuned, firsts):
    """Both divergences at the rows from ``firsts`` on, by example, and by space the mean over all such rows."""
    family = family_of(base.config.model_type)
    norm, head = base.get_submodule(family.norm), base.get_output_embeddings()
    from_base, to_base, by_space = [], [], []
    for example, first in zip(EXAMPLES, firsts, strict=True):
        ids = torch.tensor([example.inputs])
        (mine, logits), (its, base_logits) = spaces(tuned, ids), spaces(base, ids)
        from_base.append(kl(logits, base_logits)[first:])
        to_base.append(kl(base_logits, logits)[first:])
        with torch.no_grad():
            by_space.append(
                torch.stack([kl(head(norm(a)), head(norm(b)))[first:] for a, b in zip(mine, its, strict=True)])
            )
    return (
        [float(one.mean()) for one in from_base],
        [float(one.mean()) for one in to_base],
        torch.cat(by_space, 1).mean(1),
    )


def started(model, boundary, how):
    split = Split(EXAMPLES, SHARED)
    if not boundary:
        return split
    if how == "cached":
        return replace(split, start=cache_boundary(model, RUNTIME, EXAMPLES, SHARED, boundary, 16))
    return replace(split, start=FrozenLayers.of_model(model, RUNTIME, boundary, split.prefix))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])  # mamba runs over a padded grid
@pytest.mark.parametrize(("boundary", "how"), [(0, ""), (2, "cached"), (3, "off"), (4, "cached")])
def test_divergences_are_those_of_full_logits(kind, boundary, how):
    base, tuned = networks(kind, boundary)
    expected = naive(base, tuned, [SHARED] * len(EXAMPLES))
    model = apart(tuned, kind)
    found = measure_shift(model, apart(base, kind), RUNTIME, started(model, boundary, how), 16)
    assert found.from_base == pytest.approx(expected[0], rel=1e-3, abs=1e-5)
    assert found.to_base == pytest.approx(expected[1], rel=1e-3, abs=1e-5)
    assert found.layers == pytest.approx(expected[2].numpy(), rel=1e-3, abs=1e-5)
    assert found.tokens.tolist() == [len(example.inputs) - SHARED for example in EXAMPLES]
    assert (found.layers[: boundary + 1] == 0).all() or not boundary
    assert (found.layers[boundary + 1 :] > 0).all()
    assert (found.from_base > 0).all()


def test_frozen_layers_do_not_run_where_their_states_are_cached():
    base, tuned = networks("llama", 2)
    model, split = apart(tuned), started(apart(tuned), 2, "cached")
    ran = []
    for name, network in (("base", base), ("tuned", tuned)):
        for number, layer in enumerate(network.model.layers):
            layer.register_forward_hook(lambda *_, name=name, number=number: ran.append((name, number)))
    measure_shift(model, apart(base), RUNTIME, split, 1000)
    assert sorted(set(ran)) == [(name, number) for name in ("base", "tuned") for number in (2, 3)]


def test_a_model_is_not_shifted_from_itself_nor_by_an_untrained_adapter():
    base = tiny_network()
    same = measure_shift(apart(tiny_network()), apart(base), RUNTIME, Split(EXAMPLES, SHARED), 16)
    for part in (same.from_base, same.to_base, same.layers):
        assert not part.any()
    adapted = get_peft_model(tiny_network(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model = apart(adapted.get_base_model().eval())
    same = measure_shift(model, apart(base), RUNTIME, Split(EXAMPLES, SHARED), 16)
    assert max(same.from_base.max(), same.layers.max()) < 1e-6


@pytest.mark.parametrize("boundary", [0, 2])
def test_on_an_answer_side_the_tokens_after_the_prompts_count_alone(boundary):
    """The reference reads every prompt with the base, and goes on with the tuned network from transformers' cache."""
    base, tuned = networks("llama", max(boundary, 0))
    tuned.get_input_embeddings().weight.data.copy_(base.get_input_embeddings().weight.data)
    split = Split(EXAMPLES, SHARED, base_rows=ENDS)
    model, its = apart(tuned), apart(base)
    prompts = cache_prompts(its, RUNTIME, split, 16)
    start = answer_side(model, RUNTIME, split, prompts, None, boundary)
    found = measure_shift(model, its, RUNTIME, replace(split, start=start), 16)
    expected = []
    for example, end in zip(EXAMPLES, ENDS, strict=True):
        ids = torch.tensor([example.inputs])
        with torch.no_grad():
            past = base(ids[:, :end], use_cache=True).past_key_values
            places = torch.arange(end, ids.shape[1])
            said = tuned(ids[:, end:], past_key_values=past, position_ids=places[None], cache_position=places)
            expected.append(float(kl(said.logits[0], base(ids).logits[0, end:]).mean()))
    assert found.from_base == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.tokens.tolist() == [len(example.inputs) - end for example, end in zip(EXAMPLES, ENDS, strict=True)]
    assert not found.layers[: boundary + 1].any()
    assert np.all(found.layers[boundary + 1 :] > 0)
