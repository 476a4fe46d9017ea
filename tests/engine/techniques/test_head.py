"""Class heads: label words at step 0, transformers' classifiers when saved, and what does not fit."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from salf.engine.answers import Reader
from salf.engine.batches import Split
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.rules import LabelTree
from salf.engine.techniques.head import add_class_head, class_rule, of_classes, open_class_head
from salf.engine.training.forms import Trainable
from salf.engine.training.scope import Scope
from salf.errors import UserError
from salf.families import FAMILIES, family_of
from salf.methods import checked, method_of
from salf.selectors import SELECTORS
from salf.settings import Head, RaceArms
from stages.finetune.save import Base, save_model
from tests.engine.models.test_folders import BOUNDARY, CPU, FIRST, bring
from tests.engine.models.tiny import tiny_network
from tests.engine.training.tiny_training import RUNTIME, SHARED, made_examples, params

RULE = LabelTree.of({"yes": [40, 7], "no": [11, 12]})
EXAMPLES = [
    replace(one, label=("no", "yes")[n % 2], answer_ids=((11, 12), (40, 7))[n % 2])
    for n, one in enumerate(made_examples())
]


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_the_label_words_embeddings_is_pattern_scoring_at_step_0(tied):
    model, network = (tiny_network(tie_word_embeddings=tied) for _ in range(2))
    model, split = CausalModel(model, family_of("llama")), Split(EXAMPLES, SHARED)
    pattern = Reader(model, RUNTIME, RULE, 64).read(split)
    add_class_head(model, RULE, Head(init="words"), seed=1)
    found = Reader(model, RUNTIME, class_rule(RULE), 64).read(of_classes(split, RULE))
    assert [one.predicted for one in found] == [one.predicted for one in pattern]
    assert {one.predicted for one in found} == {"yes", "no"}
    for one, example in zip(found, EXAMPLES, strict=True):
        with torch.no_grad():
            words = network(torch.tensor([example.prompt_ids])).logits[0, -1, [40, 11]].softmax(-1)
        assert one.loss == pytest.approx(-float(words[int(example.label == "no")].log()), rel=1e-4)
        assert one.probability == pytest.approx(float(words.max()), rel=1e-4)


def test_random_rows_are_drawn_by_the_seed_as_transformers_draws_them():
    rows = []
    for seed in (1, 1, 2):
        model = CausalModel(tiny_network(initializer_range=0.3), family_of("llama"))
        add_class_head(model, LabelTree.of({str(n): [n] for n in range(90)}), Head(), seed)
        rows.append(model.head.weight.detach())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert float(rows[0].std()) == pytest.approx(0.3, rel=0.05)


WITHOUT = {"granite", "granitemoe", "bitnet", "cohere", "olmoe", "mamba"}


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in sorted(FAMILIES)]
)
def test_the_folder_is_transformers_classifier(tmp_path, monkeypatch, hub_folder, model_type):
    _, base = bring(tmp_path, monkeypatch, hub_folder, model_type)
    model = open_model(base, CPU)
    if model_type in WITHOUT:
        with pytest.raises(UserError, match=f"'{model_type}': transformers has no class head for it"):
            add_class_head(model, RULE, Head(), seed=1)
        return
    add_class_head(model, RULE, Head(), seed=1)
    made = Trainable.of(model, method_of("half+head"), Scope.above(BOUNDARY, model.depth), params(), 1, steps=1)
    with torch.no_grad():
        for parameter in made.parameters:
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.network.eval()  # some types have dropout
    prompts = [(5, 6, 7), (9, 8, 7, 6, 5)]
    examples = [replace(EXAMPLES[0], prompt_ids=ids, answer_ids=(0,)) for ids in prompts]
    reader = Reader(model, RUNTIME, class_rule(RULE), 64)
    expected = [one.loss for one in reader.read(Split(examples, 0))]
    folder = tmp_path / "tuned"
    folder.mkdir()
    assert save_model(made, base, folder, Base(str(base)), None) == made.units

    theirs, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert theirs.config.id2label == {0: "yes", 1: "no"}
    rows = torch.tensor([[*ids, *[theirs.config.pad_token_id] * (5 - len(ids))] for ids in prompts])
    with torch.no_grad():
        logits = theirs.eval()(rows, attention_mask=(rows != theirs.config.pad_token_id).long()).logits
    assert (-logits.log_softmax(-1)[:, 0]).tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    again = open_model(folder, CPU)
    open_class_head(again, folder)
    reader = Reader(again, RUNTIME, class_rule(RULE), 64)
    assert [one.loss for one in reader.read(Split(examples, 0))] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # The language model's own head is the base's.
    heads = [AutoModelForCausalLM.from_pretrained(each).get_output_embeddings().weight for each in (base, folder)]
    assert torch.equal(*heads)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("full+answer+head", "head has not been shown to work with answer: leave out +head"),
        ("full+head+distill", "distill has not been shown to work with head: leave out +distill"),
        ("full+lora+head", "lora and head both decide the form: leave one out"),
        ("first-n+head", "first-n cannot be combined with head: it leaves the final norm and the head as they are"),
    ],
)
def test_words_that_do_not_fit_are_refused(method, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        checked(method, SELECTORS)


@pytest.mark.parametrize("task", ["text", "free", "multiple-choice"])
def test_tasks_without_classes_are_refused(task):
    expected = f"half+head: data.task = {task} cannot be combined with head: its answers are no classes"
    assert params().unfit("half+head", {task: f"data.task = {task}"}).startswith(expected)


def test_a_race_and_words_that_begin_alike_are_refused():
    with pytest.raises(ValidationError, match=r"half\+head: its loss is over classes"):
        RaceArms(method="half+head", learning_rate=0.1)
    rule = LabelTree.of({"a": [11, 12], "b": [11, 13]})
    with pytest.raises(UserError, match=r"finetune.head.init = words: label words begin with the same token"):
        add_class_head(CausalModel(tiny_network(), family_of("llama")), rule, Head(init="words"), seed=1)
