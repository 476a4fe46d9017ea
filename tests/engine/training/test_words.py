"""Every registered word: its neutral setting, resuming, two processes, frozen shards, FLOPs, and every scope.

A word enters with its entry in :data:`salf.methods.WORDS` and one row of :data:`ROWS`.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from salf import cost
from salf.cost import Flops
from salf.engine.batches import Example, Split
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.rules import LabelTree
from salf.engine.techniques.head import add_class_head, class_rule, class_shape, of_classes
from salf.engine.training.costs import Costs, epoch_batches
from salf.engine.training.forms import Trainable
from salf.engine.training.loop import train
from salf.engine.training.scope import scope_of
from salf.engine.training.step import Job, Stepper
from salf.families import FAMILIES, family_of
from salf.methods import SCOPES, SLOTS, WORDS, checked, method_of
from salf.plan import FreezePlan
from salf.selectors import SELECTORS
from salf.settings import AVERAGES, TASKS, Finetune
from salf.shape import ModelShape
from tests.conftest import PROJECT
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import (
    DEPTH,
    RUNTIME,
    SHARED,
    KilledError,
    job_of,
    killed_at,
    made_examples,
    params,
)
from tests.plan_data import artifact

EXAMPLES = made_examples()
# The same with one-token answers, each the word of a label.
LABELLED = [replace(one, label=str(one.answer_ids[0]), answer_ids=one.answer_ids[:1]) for one in EXAMPLES]
STEPS = 6
# A teacher's logits at all answers, for words that learn from one.
TAUGHT = torch.randn(sum(len(one.answer_ids) for one in EXAMPLES), 97, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Row:
    """What the tests need to know of a word; the defaults suit most."""

    acts: dict[str, Any] = field(default_factory=dict)  # settings of its group with which it acts
    boundary: int = 2  # above which its neutral setting is shown to be neutral, and training to change with it
    tolerance: float = 0.0  # of weights under the neutral setting, absolute; 0: equal bit for bit
    matrices_alone: bool = False  # plain training is then that of the layers' matrices alone
    batched: bool = (
        False  # attention is no fused kernel: its products, over whole grids, are PyTorch's only batched ones
    )
    task: dict[str, Any] = field(default_factory=dict)  # of both trainings that the neutral setting is shown on


ROWS: dict[str, Row] = {
    "lora": Row(),
    "pace": Row(),
    "pace-lazy": Row(),
    "pace-fast": Row(),
    "distill": Row(),
    "head": Row(task={"examples": LABELLED, "tied": False}),
    "sift": Row(acts={"share": 0.1}, matrices_alone=True),
    # Of few bits, a sum's last digit may decide between two levels.
    "roste": Row(acts={"rotation": "all", "weight_bits": 16, "activation_bits": 16, "kv_bits": 16}),
    # Keys lie elsewhere in memory, with the interaction's rows: their products round otherwise.
    "dcp": Row(acts={"width": 5, "bias": 0.5}, tolerance=2e-5, batched=True),
    "dfa": Row(boundary=3),
    "extrap": Row(),
    "extragradient": Row(acts={"until": 1.0}),
    "lozo": Row(acts={"interval": 2}),
    "lozo-m": Row(),
    "mezo": Row(acts={"radius": 0.01}),
}
# These are what other words are compared with (answers alone: test_answer_side_training).
PLAIN = {"answer", "lora"}
# Without back-propagation no setting is plain training: techniques/test_zeroth_order holds them against its gradients.
BLIND = {"lozo", "lozo-m", "mezo"}
NAMES = [name for name in ROWS if name not in PLAIN | BLIND]
ALL_SCOPES = [*SELECTORS, *SCOPES, "freeze-2"]


def spelled(scope: str, name: str) -> str:
    """A method with the word and what it needs."""
    words = sorted({*WORDS[name].needs[:1], name}, key=lambda word: SLOTS.index(WORDS[word].slot))
    return "+".join((scope, *words))


def settings_of(name: str, changes: dict[str, Any], **others: Any) -> Finetune:
    """Settings with some of the word's own group changed."""
    common = params(**others)
    group = getattr(common, WORDS[name].settings, None)
    return common.model_copy(update={WORDS[name].settings: group.model_copy(update=changes)}) if changes else common


def tiny_model(dropout: float, *, tied: bool = True) -> CausalModel:
    return CausalModel(tiny_network(tie_word_embeddings=tied, attention_dropout=dropout), family_of("llama"))


def job_of_word(
    method: str,
    settings: Finetune,
    *,
    dropout: float = 0.2,
    tied: bool = True,
    examples: list[Example] = EXAMPLES,
    **changes: Any,
) -> Job:
    """A training of a tiny model from cached states, with dropout in what trains."""
    how, model = method_of(method), tiny_model(dropout, tied=tied)
    scope = scope_of(how, FreezePlan.model_validate(artifact(2, tied=True)), settings, 1, None)
    if how.form.classes:
        # Every word of the vocabulary is a label where the head begins with them, and fewer where it does not.
        rule = LabelTree.of({str(word): (word,) for word in range(97 if settings.head.init == "words" else 90)})
        add_class_head(model, rule, settings.head, 1)
        shape = class_shape(ModelShape.from_config(model.network.config.to_dict()), rule)
        changes |= {"rule": class_rule(rule), "costs": Costs(shape, scope, how.technique(settings))}
        examples = of_classes(Split(LABELLED, SHARED), rule).examples
    start = cache_boundary(model, RUNTIME, examples, SHARED, scope.boundary, 64) if scope.boundary else None
    made = Trainable.of(model, how, scope, settings, seed=1, steps=STEPS)
    return job_of(made, examples, settings, start, taught=TAUGHT, **changes)


def trained(
    method: str, settings: Finetune, *, matrices_alone: bool = False, **changes: Any
) -> dict[str, torch.Tensor]:
    """The weights of a whole network after training, of the layers' matrices alone if that is asked for."""
    job = job_of_word(method, settings, **changes)
    if matrices_alone:
        for name, weight in job.trainable.model.network.named_parameters():
            weight.requires_grad &= ".layers." in name and weight.ndim > 1
        job.trainable.parameters[:] = [weight for weight in job.trainable.parameters if weight.requires_grad]
    train(job)
    return folded(job)


def folded(job: Job) -> dict[str, torch.Tensor]:
    """The network's weights with what was added to them folded in."""
    heads = job.trainable.form.stored().values()
    job.trainable.form.fold()
    weights = dict(job.trainable.model.network.named_parameters())
    for head in heads:
        weights["lm_head.weight"] = head
    return {name: weight.detach().clone() for name, weight in weights.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def test_every_word_has_its_row_and_names_a_neutral_setting():
    assert {*ROWS} == {name for word in WORDS.values() if (name := word.name) != plain(word.slot)} - {"answer"}
    assert {name for name in ROWS if WORDS[name].neutral is None} == (PLAIN | BLIND) - {"answer"}


def plain(slot: str) -> str:
    return next(word.name for word in WORDS.values() if word.slot == slot)


def test_what_a_word_refuses_has_a_name():
    traits = {"padded", "experts"}
    known = {*SELECTORS, *SCOPES, *WORDS, *SLOTS, *TASKS, *AVERAGES, "last", "best", *Finetune.model_fields, *traits}
    known |= {"chat_template"}
    for word in WORDS.values():
        assert word.refused.keys() <= known, word.name
        assert {*word.needs, *(word.fits or ())} <= WORDS.keys(), word.name


@pytest.mark.parametrize("name", NAMES)
def test_a_neutral_setting_is_plain_training_and_another_is_not(name):
    word, row = WORDS[name], ROWS[name]
    method = spelled(f"freeze-{row.boundary}", name)
    without = "+".join((f"freeze-{row.boundary}", *word.needs[:1]))
    others = {"accumulate": 2}
    expected = trained(without, params(**others), matrices_alone=row.matrices_alone, **row.task)
    neutral = trained(method, settings_of(name, dict(word.neutral), **others), **row.task)
    for parameter, weight in neutral.items():
        torch.testing.assert_close(weight, expected[parameter], rtol=0, atol=row.tolerance)
    assert not same(trained(method, settings_of(name, row.acts, **others), **row.task), expected)


@pytest.mark.parametrize("name", ROWS)
def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(name, tmp_path, monkeypatch):
    method = spelled("freeze-2", name)
    settings = settings_of(name, ROWS[name].acts, checkpoint_minutes=0)
    expected = trained(method, settings)
    for step in (2, 4):
        killed_at(monkeypatch, step)
        with pytest.raises(KilledError):
            trained(method, settings, checkpoint=tmp_path / "unfinished.safetensors")
        monkeypatch.undo()
    assert same(trained(method, settings, checkpoint=tmp_path / "unfinished.safetensors"), expected)


@pytest.mark.parametrize("name", ROWS)
def test_frozen_shards_keep_their_hashes(name):
    job = job_of_word(spelled("freeze-2", name), settings_of(name, ROWS[name].acts))
    family = job.trainable.model.family

    def hashes(weights):
        found = {}
        for parameter, weight in sorted(weights.items()):
            unit = family.unit_of(parameter, DEPTH)
            found.setdefault(unit, hashlib.sha256()).update(weight.numpy().tobytes())
        return {unit: digest.hexdigest() for unit, digest in found.items()}

    before = hashes({n: w.detach() for n, w in tiny_model(0.2).network.named_parameters()})
    train(job)
    after = hashes(folded(job))
    assert {unit for unit in before if after[unit] != before[unit]} == {*job.trainable.units}
    assert not {"embedding", "layer-01", "layer-02"} & {*job.trainable.units}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.usefixtures("fused_attention")
def test_counted_flops_are_pytorchs(name, boundary, monkeypatch):
    """PyTorch does not count its fused attention on a CPU: neither do we here."""
    monkeypatch.setattr(cost, "_attention_flops", lambda *_: 0)
    method = spelled(f"freeze-{boundary}", name)
    if method_of(method).refusal():
        pytest.skip("refused")
    settings = settings_of(name, ROWS[name].acts, accumulate=2)
    job = job_of_word(method, settings, dropout=0.0)
    epochs = epoch_batches(job.training, settings, job.seed)
    stepper, expected = Stepper(job), Flops()
    with FlopCounterMode(display=False) as counter:
        for number, parts in enumerate(islice(chain.from_iterable(epochs), STEPS)):
            stepper.take(parts, 0.01, number)
            expected += stepper.objective.step_flops(parts, number)
    counted = counter.get_total_flops()
    if ROWS[name].batched:
        counted -= counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    assert counted == expected.total


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """The weights that two processes ended with, by word: one launch for all."""
    folder = tmp_path_factory.mktemp("two")
    launch = "from stages.finetune.launch import launch; launch('tests.engine.training.words_worker', sys.argv[1:], 2)"
    asked = json.dumps({name: [spelled("freeze-2", name), ROWS[name].acts] for name in ROWS})
    command = [sys.executable, "-c", f"import sys; {launch}", str(folder), asked]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True, timeout=600)
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_two_processes_give_what_one_gives(name, of_two_processes):
    """Stated tolerance: weights to 2e-4 after six steps of AdamW at rate 0.01."""
    first, second = (load_file(of_two_processes / f"{name}-{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    settings = settings_of(name, ROWS[name].acts, batch_size=5, accumulate=3)
    for parameter, weight in trained(spelled("freeze-2", name), settings, dropout=0.0).items():
        torch.testing.assert_close(first[parameter], weight, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", [*ROWS, "answer"])
def test_every_scope_takes_a_word_or_refuses_it_with_the_tables_reason(name):
    word = WORDS[name]
    for scope in ALL_SCOPES:
        method = spelled(scope, name)
        reasons = [WORDS[each].refused[scope] for each in method_of(method).words if scope in WORDS[each].refused]
        if not reasons:
            assert checked(method, SELECTORS) == method
            continue
        with pytest.raises(ValueError, match=rf"{scope} cannot be combined with .*{reasons[0]}; leave out \+"):
            checked(method, SELECTORS)
        assert word.needs or reasons == [word.refused[scope]]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ROWS)
def test_a_scope_of_its_own_trains_with_every_word_that_takes_it(name, scope):
    method = spelled(scope, name)
    if method_of(method).refusal():
        pytest.skip("refused")
    settings = settings_of(name, ROWS[name].acts, lisa_layers=1, lisa_steps=4)
    job = job_of_word(method, settings)
    before = dict(tiny_model(0.2).network.named_parameters())
    train(job)
    layers = job.trainable.scope.layers_within(STEPS)
    assert len(layers) < DEPTH
    after = folded(job)
    for number in range(1, DEPTH + 1):
        own = [n for n in before if n.startswith(f"model.layers.{number - 1}.")]
        assert any(not torch.equal(before[n], after[n]) for n in own) == (number in layers)


@pytest.mark.parametrize("name", [name for name in WORDS if "padded" in WORDS[name].refused])
def test_families_that_run_padded_are_refused(name):
    padded = next(kind for kind, family in FAMILIES.items() if not family.packed)
    assert padded
    assert "padded" in params().unfit(spelled("full", name), {"padded": "a model whose layers run padded"})
