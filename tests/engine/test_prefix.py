"""The cached prefix and the suffix against the whole model with frozen layers, for every family in the table."""

from functools import partial

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import SFTConfig, SFTTrainer

from salf.callback import FreezePlanCallback
from salf.engine import prefix
from salf.engine.prefix import PrefixStates, collate_states, prefix_states
from salf.engine.suffix import suffix
from salf.errors import UserError
from salf.families import FAMILIES
from salf.plan import FreezePlan
from tests.engine.models.tiny import tiny_network
from tests.own_plan import write_plan_and_base

BOUNDARY = 2
LENGTHS = (7, 5, 9, 4)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32


def rows():
    """Examples that begin alike; the first two tokens are no labels."""
    tokens = [[3, 4, 5, *range(10 + 5 * n, 7 + 5 * n + length)] for n, length in enumerate(LENGTHS)]
    return [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in tokens]


def whole_batch(side):
    """The rows as a collator of transformers pads them, with the positions that tokens have in their rows."""
    padded = {}
    for name, value in (("input_ids", 0), ("labels", -100)):
        parts = [torch.tensor(row[name]) for row in rows()]
        padded[name] = torch.nn.utils.rnn.pad_sequence(parts, True, value, padding_side=side)
    mask = padded["attention_mask"] = (padded["input_ids"] != 0).long()
    return padded, (mask.cumsum(1) - 1).clamp(min=0)


def frozen_whole(model_type, **overrides):
    """The whole model, layers 1 and 2 and the embeddings frozen by hand."""
    network = tiny_network(model_type, **overrides)
    family = FAMILIES[model_type]
    for name, parameter in network.named_parameters():
        layer = name.removeprefix(f"{family.layers}.").split(".")[0] if name.startswith(f"{family.layers}.") else None
        above = int(layer) >= BOUNDARY if layer else not family.before_layers(name)
        parameter.requires_grad_(above)
    return network


def train_once(network, **batch):
    """One step of AdamW; returns logits, loss and gradients."""
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    output = network(**batch)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in trained.items()}
    torch.optim.AdamW(trained.values(), lr=1e-2, eps=1e-4).step()
    return output.logits.detach(), output.loss.detach(), gradients


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_step_on_cached_states_is_the_whole_models(model_type, side):
    whole, model = frozen_whole(model_type), tiny_network(model_type)
    batch, positions = whole_batch(side)
    mask = batch["attention_mask"].bool()
    placed = {"position_ids": positions} if side == "left" and model_type not in ("bloom", "mamba") else {}
    states = prefix_states(model, rows(), BOUNDARY)
    ours = train_once(suffix(model, BOUNDARY), **collate_states(list(states), padding_side=side))
    theirs = train_once(whole, **batch, **placed)
    torch.testing.assert_close(ours[0][mask], theirs[0][mask], **TOLERANCE)
    torch.testing.assert_close(ours[1:], theirs[1:], **TOLERANCE)
    for (name, mine), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("options", [{"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}, {}])
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_is_the_whole_models_with_windows_and_a_tied_head(options, tied):
    kind, options = ("qwen2" if options else "llama"), {**options, "tie_word_embeddings": tied}
    whole, model = frozen_whole(kind, **options), tiny_network(kind, **options)
    if tied:
        whole.get_input_embeddings().weight.requires_grad_(False)
    batch, _ = whole_batch("right")
    ours = train_once(suffix(model, BOUNDARY), **collate_states(list(prefix_states(model, rows(), BOUNDARY))))
    torch.testing.assert_close(ours[1:], train_once(whole, **batch)[1:], **TOLERANCE)


def test_checkpointing_that_was_on_before_loses_no_gradient():
    batch = collate_states(list(prefix_states(tiny_network(), rows(), BOUNDARY)))
    model = tiny_network().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    found, expected = (train_once(suffix(one, BOUNDARY), **batch) for one in (model, tiny_network()))
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "mamba"])
def test_recomputed_layers_give_the_same_gradients(model_type):
    dropout = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if model_type == "gpt2" else {}
    batch = collate_states(list(prefix_states(tiny_network(model_type), rows(), BOUNDARY)))
    plain, recomputed = (suffix(tiny_network(model_type, **dropout), BOUNDARY) for _ in range(2))
    recomputed.train()
    recomputed.activation_checkpointing_enable({"use_reentrant": True})  # which would lose the gradients
    torch.testing.assert_close(train_once(recomputed, **batch), train_once(plain, **batch), **TOLERANCE)


def test_the_calling_convention_is_the_models_own():
    model = tiny_network()
    above = suffix(model, BOUNDARY)
    batch = collate_states(list(prefix_states(model, rows(), BOUNDARY)))
    output = above(**batch)
    assert output.logits.shape == (len(LENGTHS), max(LENGTHS), model.config.vocab_size)
    loss, logits = above(**batch, return_dict=False)[:2]
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    summed = above(**batch, num_items_in_batch=torch.tensor(10)).loss * 10
    torch.testing.assert_close(summed, output.loss * (batch["labels"] != -100).sum())
    assert torch.equal(above(inputs_embeds=batch["inputs_embeds"], logits_to_keep=2).logits[2], output.logits[2, -2:])
    assert isinstance(above, type(model))


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_a_mixtures_auxiliary_loss_is_that_of_the_trained_layers(kind):
    model = tiny_network(kind, output_router_logits=True)  # and transformers has installed no hooks yet
    batch = collate_states(list(prefix_states(model, rows(), BOUNDARY)))
    found = suffix(model, BOUNDARY)(**batch).aux_loss
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows()], batch_first=True)
    mask = (ids != 0).long()
    whole = tiny_network(kind, output_router_logits=True)(ids, attention_mask=mask)
    expected = load_balancing_loss_func(whole.router_logits[BOUNDARY:], 4, 2, mask)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_the_suffix_shares_the_models_tensors_and_saves_the_whole_model(tmp_path):
    model = tiny_network()
    above = suffix(model, BOUNDARY)
    parameters = dict(model.named_parameters())
    assert all(parameters[name] is parameter for name, parameter in above.named_parameters())
    assert not [name for name in above.state_dict() if ".layers.0." in name or ".layers.1." in name]
    train_once(above, **collate_states(list(prefix_states(model, rows(), BOUNDARY))))
    above.save_pretrained(tmp_path / "suffix")
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "suffix/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()


def test_states_are_of_a_model_without_dropout_and_leave_it_as_it_was():
    model = tiny_network("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    attention, still = model.config._attn_implementation, tiny_network("gpt2")
    states, expected = (prefix_states(one, rows(), BOUNDARY) for one in (model, still))
    torch.testing.assert_close([*states], [*expected])
    assert model.training
    assert model.transformer.h[0].mlp.dropout.training
    assert model.config._attn_implementation == attention


class Plain(torch.utils.data.Dataset):
    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        return {name: torch.tensor(value) for name, value in rows()[index].items()}


def padded_rows():
    batch, _ = whole_batch("left")
    return [{name: values[n].tolist() for name, values in batch.items()} for n in range(len(LENGTHS))]


@pytest.mark.parametrize("make", [Plain, padded_rows, lambda: datasets.Dataset.from_list(rows())])
def test_any_tokenised_dataset_gives_the_same_states(make):
    found = prefix_states(tiny_network(), make(), BOUNDARY)
    for mine, expected in zip(found, prefix_states(tiny_network(), rows(), BOUNDARY), strict=True):
        torch.testing.assert_close(mine, expected, **TOLERANCE)
    unlabelled = prefix_states(tiny_network(), [{"input_ids": [5, 6, 7]}], BOUNDARY)
    assert unlabelled[0]["labels"].tolist() == [5, 6, 7]


def trained_with(folder, model, dataset, collator, trainer=Trainer, settings=TrainingArguments, **options):
    """A trainer after six steps at a batch of two, with gradients accumulated."""
    arguments = settings(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=6,
        learning_rate=1e-2,
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        **options.pop("arguments", {}),
    )
    made = trainer(model, arguments, train_dataset=dataset, data_collator=collator, **options)
    made.train()
    return made


def whole_collator(chosen):
    return {
        name: torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in chosen], True, value)
        for name, value in (("input_ids", 0), ("labels", -100))
    } | {"attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones(len(row["input_ids"])) for row in chosen], True)}


def assert_same_weights(one, other):
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_a_trainer_gives_the_same_model_and_its_checkpoints_are_whole_models(tmp_path):
    whole, model = frozen_whole("llama"), tiny_network()
    trained_with(tmp_path / "whole", whole, rows(), whole_collator)
    above, states = suffix(model, BOUNDARY), prefix_states(model, rows(), BOUNDARY)
    trainer = trained_with(tmp_path / "ours", above, states, collate_states)
    assert_same_weights(model, whole)
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "ours/checkpoint-6"), model)
    again = tiny_network()
    resumed = Trainer(suffix(again, BOUNDARY), trainer.args, train_dataset=states, data_collator=collate_states)
    resumed.train(resume_from_checkpoint=str(tmp_path / "ours/checkpoint-4"))
    assert_same_weights(again, model)


TRL = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trls_trainer_gives_the_same_model(tmp_path, hub_folder, tokenizer, checkpointing):
    whole, model = frozen_whole("llama"), tiny_network()
    trained_with(tmp_path / "whole", whole, rows(), whole_collator)
    states = prefix_states(model, rows(), BOUNDARY).to_datasets()
    arguments = {**TRL, "gradient_checkpointing": checkpointing}
    options = {"processing_class": tokenizer, "arguments": arguments}
    trained_with(tmp_path, suffix(model, BOUNDARY), states, collate_states, SFTTrainer, SFTConfig, **options)
    assert_same_weights(model, whole)


@pytest.fixture
def tokenizer(hub_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hub_folder)


def adapters(network, boundary=BOUNDARY):
    """LoRA above the boundary, the same whichever model it goes to."""
    torch.manual_seed(1)
    layers = list(range(boundary, network.config.num_hidden_layers))
    return get_peft_model(network, LoraConfig(**LORA, layers_to_transform=layers))


@pytest.mark.parametrize("how", ["on the suffix", "before", "in all layers before", "by trl"])
def test_adapters_train_as_on_the_whole_model(tmp_path, tokenizer, how):
    """Where the model has them in all layers, those of the frozen ones are part of the prefix."""
    whole, model = tiny_network(), tiny_network()
    arguments = {"label_names": ["labels"]}
    if how == "by trl":
        config = LoraConfig(**LORA, layers_to_transform=[2, 3])
        options = {"processing_class": tokenizer, "arguments": TRL, "peft_config": config}
        run = partial(trained_with, trainer=SFTTrainer, settings=SFTConfig)
        data = datasets.Dataset.from_list(rows())
        expected = run(tmp_path / "whole", whole, data, whole_collator, **{**options, "arguments": TRL}).model
        states = prefix_states(model, rows(), BOUNDARY).to_datasets()
        found = run(tmp_path, suffix(model, BOUNDARY), states, collate_states, **{**options, "arguments": TRL}).model
    else:
        lowest = 0 if how == "in all layers before" else BOUNDARY
        expected = adapters(whole, lowest)
        for name, parameter in expected.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not name.startswith(FROZEN))
        found = adapters(model, lowest) if how != "on the suffix" else model
        states = prefix_states(found, rows(), BOUNDARY)
        above = adapters(suffix(model, BOUNDARY)) if how == "on the suffix" else suffix(found, BOUNDARY)
        found = above if how == "on the suffix" else found
        trained_with(tmp_path / "whole", expected, rows(), whole_collator, arguments=arguments)
        trained_with(tmp_path, above, states, collate_states, arguments=arguments)
    theirs = {name: parameter for name, parameter in expected.named_parameters() if "lora_" in name}
    ours = {name: parameter for name, parameter in found.named_parameters() if "lora_" in name}
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not [
        name for name, parameter in found.named_parameters() if parameter.requires_grad and ".layers.1." in name
    ]


def test_a_trainers_checkpoint_of_an_adapted_models_suffix_holds_all_adapters_and_resumes(tmp_path):
    """Of the frozen layers' adapters too: they have weights of their own, and are part of the prefix."""
    model = adapters(tiny_network(), 0)
    above, states = suffix(model, BOUNDARY), prefix_states(model, rows(), BOUNDARY)
    trainer = trained_with(tmp_path, above, states, collate_states, arguments={"label_names": ["labels"]})
    found = PeftModel.from_pretrained(tiny_network(), tmp_path / "checkpoint-6")
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(found(input_ids=ids).logits, model(input_ids=ids).logits, **TOLERANCE)
    again = adapters(tiny_network(), 0)
    resumed = Trainer(suffix(again, BOUNDARY), trainer.args, train_dataset=states, data_collator=collate_states)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_weights(again, model)


FROZEN = ("base_model.model.model.layers.0.", "base_model.model.model.layers.1.")


def test_adapters_trained_on_the_suffix_load_into_the_model_and_merge_into_it(tmp_path):
    model = tiny_network()
    adapted = adapters(suffix(model, BOUNDARY))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_network(), tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = loaded(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected, **TOLERANCE)
    adapted.merge_and_unload()
    assert type(model.model.layers[3].self_attn.q_proj) is torch.nn.Linear
    torch.testing.assert_close(model(input_ids=ids).logits, expected, **TOLERANCE)


def passes(model):
    """Counts how often the first layer runs."""
    ran = []
    model.model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    return ran


def test_a_file_that_fits_is_opened_and_nothing_is_computed(tmp_path):
    file = tmp_path / "states.safetensors"
    made = prefix_states(tiny_network(), rows(), BOUNDARY, file=file)
    model = tiny_network()
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight.zero_()  # above the boundary
    ran = passes(model)
    found = prefix_states(model, rows(), BOUNDARY, file=file)
    assert (made.reused, found.reused) == (False, True)
    assert len(ran) == 2  # by the check of the model's parts
    torch.testing.assert_close([*found], [*made], rtol=0, atol=0)
    torch.testing.assert_close([*found], [*prefix_states(tiny_network(), rows(), BOUNDARY)], rtol=0, atol=0)


def test_a_file_in_a_folder_that_cannot_be_written_is_opened(tmp_path, monkeypatch):
    """Root may write anywhere, so the lock is refused in its place."""
    file = tmp_path / "states.safetensors"
    prefix_states(tiny_network(), rows(), BOUNDARY, file=file)

    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prefix, "alone", refused)
    assert prefix_states(tiny_network(), rows(), BOUNDARY, file=file).reused
    with pytest.raises(
        UserError, match=r"other: the boundary states cannot be written: Permission denied; name another"
    ):
        prefix_states(tiny_network(), rows(), BOUNDARY, file=tmp_path / "other")
    with pytest.raises(UserError, match="it is a folder; name a file"):
        prefix_states(tiny_network(), rows(), BOUNDARY, file=tmp_path)


def changed(model):
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    return model


@pytest.mark.parametrize(
    ("model", "data", "boundary", "options"),
    [
        (lambda: changed(tiny_network()), rows(), BOUNDARY, {}),
        (tiny_network, rows()[::-1], BOUNDARY, {}),
        (tiny_network, rows(), BOUNDARY + 1, {}),
        (tiny_network, rows(), BOUNDARY, {"bf16": True}),
        (lambda: tiny_network(rope_theta=7.0), rows(), BOUNDARY, {}),
    ],
    ids=["weights", "tokens", "boundary", "precision", "configuration"],
)
def test_a_file_of_something_else_is_refused_and_stays(tmp_path, model, data, boundary, options):
    file = tmp_path / "states.safetensors"
    prefix_states(tiny_network(), rows(), BOUNDARY, file=file)
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"states.safetensors: not the boundary states of this model"):
        prefix_states(model(), data, boundary, file=file, **options)
    assert file.read_bytes() == before


def test_states_that_do_not_fit_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    def computed(*_):
        yield pytest.fail("computed")

    monkeypatch.setattr(prefix, "frozen_states", computed)
    monkeypatch.setattr(prefix, "free_memory_bytes", lambda: 100)
    with pytest.raises(UserError, match=r"need 0\.0 MiB, and 0\.0 MiB of memory is free; pass file="):
        prefix_states(tiny_network(), rows(), BOUNDARY)
    monkeypatch.setattr(prefix.shutil, "disk_usage", lambda _: type("usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"need 0\.0 MiB, and 0\.0 MiB of free in .*; name another disk"):
        prefix_states(tiny_network(), rows(), BOUNDARY, file=tmp_path / "states")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "row 1: no input_ids; tokenise the dataset first"),
        ({"input_ids": []}, "row 1: it needs one token at least"),
        ({"input_ids": [5, 97]}, "ids below 97"),
        ({"input_ids": [5, 6], "labels": [5]}, "three lists of whole numbers of one length"),
        ({"input_ids": [5, 6], "position_ids": [0, 0]}, "it has position_ids; give one example per row"),
        ({"input_ids": [5, 6], "labels": [5, 97]}, "ids below 97 .labels too, or -100."),
        ({"input_ids": [5, 6], "labels": None}, "not three lists of whole numbers"),
        ({"input_ids": "five"}, "not three lists of whole numbers"),
        ({"input_ids": [5.0, 6.0]}, "not three lists of whole numbers"),
        ({"input_ids": [[5, 6], [7]]}, "not three lists of whole numbers"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "leaves out tokens between others"),
        ({"input_ids": [5, 6, 7, 8], "attention_mask": [0, 1, 0, 1]}, "leaves out tokens between others"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, message):
    with pytest.raises(UserError, match=message):
        prefix_states(tiny_network(), [{"input_ids": [5, 6]}, row], BOUNDARY)


def test_what_cannot_work_is_refused_in_one_line():
    model = tiny_network()
    for boundary in (0, 5):
        with pytest.raises(UserError, match=rf"boundary {boundary}: cached states need 1 to 4 frozen layers"):
            suffix(model, boundary)
    with pytest.raises(UserError, match="above boundary 4 nothing is left to train"):
        suffix(adapters(tiny_network(), 3), 4)
    for boundary in ("data/plan", 2.0):
        with pytest.raises(UserError, match=r"is neither a number of layers nor a plan; open one with"):
            suffix(model, boundary)
    with pytest.raises(UserError, match="the dataset is empty"):
        prefix_states(model, [], BOUNDARY)
    for data in ({"train": rows()}, iter(rows()), datasets.IterableDataset.from_generator(lambda: iter(rows()))):
        with pytest.raises(UserError, match="is not a list of rows; give one split"):
            prefix_states(model, data, BOUNDARY)
    with pytest.raises(
        UserError, match=r"these are not items of salf\.prefix_states; an evaluation split needs its states"
    ):
        collate_states(rows())
    with pytest.raises(UserError, match="does not generate: the whole model does"):
        suffix(model, BOUNDARY).generate(torch.tensor([[5, 6]]))
    with pytest.raises(UserError, match="a suffix takes boundary states as inputs_embeds"):
        suffix(model, BOUNDARY)(input_ids=torch.tensor([[5, 6]]))
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(UserError, match="spread over several devices"):
        suffix(model, BOUNDARY)


@pytest.mark.parametrize("how", ["plain", "Trainer", "SFTTrainer", "suffix of adapters", "adapters of a suffix"])
def test_states_of_another_boundary_are_refused(tmp_path, tokenizer, how):
    model = tiny_network()
    others, sft = prefix_states(model, rows(), 1), {"processing_class": tokenizer, "arguments": TRL}
    above = suffix(adapters(model) if how == "suffix of adapters" else model, BOUNDARY)
    above = adapters(above) if how == "adapters of a suffix" else above
    run = partial(above, **collate_states(list(others)))
    if how == "Trainer":
        run = partial(trained_with, tmp_path, above, others, collate_states)
    if how == "SFTTrainer":
        data = others.to_datasets()
        run = partial(trained_with, tmp_path, above, data, collate_states, SFTTrainer, SFTConfig, **sft)
    with pytest.raises(UserError, match=f"boundary states of layer 1, and this suffix starts after layer {BOUNDARY}"):
        run()


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_a_row_beyond_the_learned_positions_is_refused(model_type):
    long = [{"input_ids": [5] * tokens} for tokens in (3, 129)]
    with pytest.raises(UserError, match="a row has 129 tokens, the model has positions for 128; cut the row"):
        prefix_states(tiny_network(model_type), long, BOUNDARY)
    assert prefix_states(tiny_network(), long, BOUNDARY)[1]["labels"].shape == (129,)  # angles are computed


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "data/base", "str is not a causal language model"),
        (lambda: torch.compile(tiny_network()), "OptimizedModule is not a causal language model"),
        (lambda: tiny_network().model, "LlamaModel is not a causal language model"),
        (lambda: suffix(tiny_network(), BOUNDARY), "this is a suffix, without frozen layers"),
        (
            lambda: get_peft_model(tiny_network(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
            "PEFT's virtual tokens train below the frozen layers",
        ),
        (lambda: adapters(suffix(tiny_network(), BOUNDARY)), "this is a suffix, without frozen layers"),
    ],
)
def test_only_a_whole_causal_model_is_taken(model, message):
    for call in (partial(suffix, model()), lambda boundary: prefix_states(model(), rows(), boundary)):
        with pytest.raises(UserError, match=message):
            call(BOUNDARY)


@pytest.mark.parametrize("model_type", ["stablelm", "glm", "mpt", "gpt_oss", "falcon_mamba"])
def test_a_model_type_outside_the_table_works_if_its_layers_run_apart(model_type):
    assert model_type not in FAMILIES
    model = tiny_network(model_type, head_dim=None if model_type != "gpt_oss" else 8)
    batch, _ = whole_batch("right")
    expected = model(**batch).loss
    found = suffix(model, BOUNDARY)(**collate_states(list(prefix_states(model, rows(), BOUNDARY)))).loss
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_model_that_cannot_be_found_apart_is_refused():
    model = tiny_network("codegen")
    with pytest.raises(UserError, match="model type 'codegen': its layers cannot be run one by one"):
        prefix_states(model, rows(), BOUNDARY)


def test_layers_that_hand_more_than_states_to_each_other_are_refused():
    model = tiny_network()
    layer, above = model.model.layers[1], model.model.layers[2]
    layer.register_forward_hook(lambda *_: setattr(above, "hint", 1.0))
    above.register_forward_hook(lambda module, _, output: output + vars(module).pop("hint", 0.0))
    with pytest.raises(UserError, match=r"'llama': its layers, run one by one, give other logits"):
        suffix(model, BOUNDARY)


def test_a_plan_gives_the_boundary_and_is_checked(hub_folder, tmp_path):
    write_plan_and_base(tmp_path, hub_folder)
    plan = FreezePlan.load(tmp_path / "data/plan")
    model = AutoModelForCausalLM.from_pretrained(hub_folder)
    states = prefix_states(model, [{"input_ids": [5, 6, 7]}], plan)
    assert (states.boundary, len(suffix(model, plan).model.layers)) == (BOUNDARY, 4)
    assert prefix_states(model, [{"input_ids": [5, 6, 7]}], plan, scope="freeze-3").boundary == 3
    for call in (lambda: suffix(tiny_network(), plan), lambda: prefix_states(tiny_network(), rows(), plan)):
        with pytest.raises(UserError, match="the freeze plan is for"):
            call()
    assert isinstance(states, PrefixStates)
    with pytest.raises(UserError, match=r"no boundary of hallf: no selector has this name$"):
        suffix(model, plan, "hallf")


def test_the_callback_takes_a_suffix_and_writes_the_plan_into_its_checkpoints(hub_folder, tmp_path):
    write_plan_and_base(tmp_path, hub_folder)
    plan = FreezePlan.load(tmp_path / "data/plan")
    model = AutoModelForCausalLM.from_pretrained(hub_folder)
    above, states = suffix(model, plan), prefix_states(model, rows(), plan)
    trained_with(tmp_path, above, states, collate_states, callbacks=[FreezePlanCallback(plan)])
    assert FreezePlan.load(tmp_path / "checkpoint-6") == plan
