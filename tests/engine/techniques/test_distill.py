"""Prompt distillation: its loss held against transformers, its teacher's pass computed once and counted."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.rules import LabelTree
from salf.engine.techniques.distill import teacher_logits
from salf.engine.training.costs import cut
from salf.engine.training.forms import Trainable
from salf.engine.training.scope import Scope
from salf.engine.training.workbench import Workbench
from salf.engine.tuning import Arm, Tuning, best_of
from salf.errors import UserError
from salf.families import family_of
from salf.files import read_json, write_json
from salf.methods import Method
from salf.settings import Distill
from tests.engine.boundary_cache.tiny_task import SHARDS
from tests.engine.models.tiny import save_tiny, tiny_network
from tests.engine.training.tiny_training import (
    RUNTIME,
    SHARED,
    assert_equal_weights,
    made_examples,
    params,
    run,
    scope_above,
    stepper_of,
)

EXAMPLES = made_examples()
WHOLE = list(range(len(EXAMPLES)))
WEIGHT, TEMPERATURE = 0.3, 2.0


def settings(**changes):
    own = Distill(**{"weight": WEIGHT, "temperature": TEMPERATURE, "over": "vocabulary", **changes})
    return params(distill=own, cache="memory", evaluations_per_epoch=1)


@pytest.fixture
def base(tmp_path):
    folder = save_tiny(tmp_path / "base")
    write_json(folder / "base.json", {"shards": SHARDS})
    return folder


def logits_of(network, example):
    return network(torch.tensor([example.inputs])).logits[0, len(example.prompt_ids) - 1 :]


def made(word="distill", boundary=0):
    model = CausalModel(tiny_network(), family_of("llama"))
    return Trainable.of(model, Method("full", (word,) if word else ()), scope_above(boundary), params(), 1, 6)


def student(base):
    return Split(EXAMPLES, SHARED).without_beginning(base)


def taught(base, rule=None, **changes):
    bench = Workbench(base=base, runtime=RUNTIME, settings=settings(**changes))
    return teacher_logits(open_model(base, RUNTIME.device), bench, Split(EXAMPLES, SHARED), rule)


TREE = LabelTree.of({"a": [11, 12], "b": [11, 13], "c": [40]})


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize(("rule", "outputs"), [(None, slice(None)), (TREE, [11, 12, 13, 40])], ids=["all", "words"])
def test_the_loss_is_that_of_both_prompts_read_by_transformers(base, rule, outputs, parts):
    ready, short = made(), student(base)
    with torch.no_grad():
        for parameter in ready.model.network.parameters():  # the student is no longer the teacher
            parameter.mul_(1.1)
    teacher, total = tiny_network(), torch.zeros(())
    for whole, cut_one in zip(EXAMPLES, short.examples, strict=True):
        assert cut_one.prompt_ids == whole.prompt_ids[SHARED:]
        said, known = logits_of(ready.model.network, cut_one), logits_of(teacher, whole).detach()
        total += (1 - WEIGHT) * torch.nn.functional.cross_entropy(said, torch.tensor(whole.answer_ids), reduction="sum")
        p, q = ((one[:, outputs] / TEMPERATURE).softmax(-1) for one in (known, said))
        total += WEIGHT * TEMPERATURE**2 * (p * (p.log() - q.log())).sum()
    over = settings(over="answers")
    objective = stepper_of(
        ready, EXAMPLES, over, training=short, rule=rule, taught=taught(base, rule, over="answers")
    ).objective
    loss = sum(objective(short.batch(part)) for part in cut(WHOLE, parts))
    torch.testing.assert_close(loss, total)


@pytest.mark.parametrize("boundary", [0, 2])
def test_of_weight_0_is_plain_training_on_the_short_prompts_bit_for_bit(base, boundary):
    plain, ours = made(None, boundary), made("distill", boundary)
    for each in (plain, ours):
        run(each, EXAMPLES, settings(weight=0.0), training=student(base))
    assert_equal_weights(plain, ours)


def test_a_student_that_reads_the_whole_prompt_has_nothing_to_learn_from_the_teacher(base):
    whole = Split(EXAMPLES, SHARED)
    objective = stepper_of(made(), EXAMPLES, settings(weight=1.0), training=whole, taught=taught(base)).objective
    loss = objective(whole.batch(WHOLE))
    loss.backward()
    assert abs(loss.item()) < 1e-4
    gradients = [p.grad.abs().max() for p in objective.job.trainable.parameters]
    assert max(gradients) < 1e-4


def tuned(base, folder, word="distill", rates=(0.001, 0.01)):
    split = Split(EXAMPLES, SHARED)
    return Tuning(
        bench=Workbench(base=base, runtime=RUNTIME, settings=settings(over="answers")),
        plan=None,
        name="half",
        seed=1,
        first_n=None,
        training=split,
        validation=split,
        test=None,
        rule=None,
        arms=[Arm(Method("half", (word,) if word else ()), rate) for rate in rates],
        keep=None,
        unfinished=folder / f"unfinished-{word}",
    )


def test_the_teacher_reads_once_for_all_rates_and_its_pass_is_counted(base, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "salf.engine.tuning.teacher_logits", lambda *given: seen.append(given) or teacher_logits(*given)
    )
    found = best_of(tuned(base, tmp_path))
    assert len(seen) == 1
    with FlopCounterMode(display=False) as counted:
        teacher_logits(*seen[0])
    with FlopCounterMode(display=False) as reading:
        Reader(seen[0][0], RUNTIME, None, 10**6).read(Split(EXAMPLES, SHARED))
    assert counted.get_total_flops() == reading.get_total_flops()  # which the costs of reading are held against
    bench = tuned(base, tmp_path).bench
    teacher = bench.costs(Scope.above(0, 4)).reading(Split(EXAMPLES, SHARED))
    below = bench.costs(Scope.above(2, 4)).frozen(student(base))
    assert found.training.flops_before == below + teacher
    assert found.seconds_cache > 0
    network = found.trainable.model.network.eval()  # what is kept is scored on prompts without their beginning
    losses = [
        torch.nn.functional.cross_entropy(logits_of(network, one), torch.tensor(one.answer_ids)).item()
        for one in student(base).examples
    ]
    best = min(one.validation_loss for one in found.grid)
    assert best == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_a_first_token_bos_stays_and_prompts_without_a_beginning_are_refused(base):
    write_json(base / "config.json", {**read_json(base / "config.json"), "bos_token_id": 5})
    short = student(base)
    assert short.shared == 1
    assert [one.prompt_ids for one in short.examples] == [(5, *one.prompt_ids[SHARED:]) for one in EXAMPLES]
    with pytest.raises(UserError, match=r"begin with nothing in common; put worked examples first in data\.template"):
        short.without_beginning(base)
