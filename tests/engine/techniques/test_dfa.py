"""Direct feedback against gradients taken layer by layer from transformers' own pass over each example."""

import pytest
import torch

from salf.engine.techniques.dfa import DirectFeedback
from salf.settings import Dfa
from tests.engine.training.test_words import EXAMPLES, job_of_word
from tests.engine.training.tiny_training import DEPTH, params, stepper_of

WHOLE = list(range(7))


def gradients(job):
    """Gradients of one batch, before the update, clipped to nothing but themselves."""
    stepper = stepper_of(job.trainable, EXAMPLES, job.settings, job.training.start)
    seen = {}

    def keep(*_):
        seen.update({n: p.grad.clone() for n, p in job.trainable.model.network.named_parameters() if p.requires_grad})

    stepper.optimizer.register_step_post_hook(keep)
    stepper.take([job.training.batch(part) for part in (WHOLE[::2], WHOLE[1::2])], 0.0, 0)
    return seen


def settings(recompute=False, **own):
    return params(clip_norm=1e9, dfa=Dfa(**own), gradient_checkpointing=recompute)


def by_hand(job, boundary, own):
    """Each layer's gradients alone, for the gradient of its output; norm, head and error by back-propagation."""
    network, feedback = job.trainable.model.network, DirectFeedback(job).feedback
    layers, tokens = network.model.layers, sum(len(EXAMPLES[i].answer_ids) for i in WHOLE)
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    for example in (EXAMPLES[i] for i in WHOLE):
        outputs = []
        hooks = [layer.register_forward_hook(lambda *given, o=outputs: o.append(given[-1])) for layer in layers]
        logits = network(torch.tensor([list(example.inputs)])).logits[0]
        for hook in hooks:
            hook.remove()
        states = [output[0] if isinstance(output, tuple) else output for output in outputs]
        first = len(example.prompt_ids) - 1
        loss = (
            torch.nn.functional.cross_entropy(logits[first:], torch.tensor(example.answer_ids), reduction="sum")
            / tokens
        )
        (error,) = torch.autograd.grad(loss, states[-1], retain_graph=True)
        sent = error if feedback is None else error @ feedback
        if own.get("spread") == "example":
            mean = sent[:, first:].mean(1, keepdim=True)
            sent = torch.zeros_like(sent)
            sent[:, 3:] = mean  # three shared tokens belong to no example
        for number in range(boundary, DEPTH):
            last = number == DEPTH - 1
            given = error if last and own.get("last") == "exact" else sent.clone()
            if last:
                given[:, :first] = 0  # what is computed there is not used
            names = [n for n in trained if n.startswith(f"model.layers.{number}.")]
            found = torch.autograd.grad(states[number], [trained[n] for n in names], given, retain_graph=True)
            for name, gradient in zip(names, found, strict=True):
                total[name] += gradient
        for name in [n for n in trained if n == "model.norm.weight"]:
            total[name] += torch.autograd.grad(loss, trained[name], retain_graph=True)[0]
    return total


@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"recompute": True},
        {"last": "exact"},
        {"feedback": "identity"},
        {"spread": "example"},
        {"spread": "example", "feedback": "identity", "last": "exact"},
    ],
    ids=str,
)
def test_layers_get_the_error_and_norms_and_heads_their_own_gradient(own, boundary):
    job = job_of_word(f"freeze-{boundary}+dfa", settings(**own), dropout=0.0)
    expected = by_hand(job, boundary, own)
    found = gradients(job)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if "embed_tokens" not in name:  # it is the head, too
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 + 1e-4 * float(gradient.abs().max()))


def test_feedback_is_uniform_and_fixed_by_the_seed():
    one, same, other = (
        DirectFeedback(job_of_word("freeze-2+dfa", settings(), seed=seed)).feedback for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    edge = one.shape[0] ** -0.5
    assert float(one.abs().max()) <= edge
    assert float(one.std()) == pytest.approx(edge / 3**0.5, rel=0.1)
    assert DirectFeedback(job_of_word("freeze-2+dfa", settings(feedback="identity"))).feedback is None
