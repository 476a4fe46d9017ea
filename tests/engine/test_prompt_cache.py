"""Answer-side tuning in own loops, for every family in the table; the reference is transformers' own cache."""

import copy
import re

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from salf.engine import prefix
from salf.engine.answer_model import AnswerSideModel
from salf.engine.answer_side import answer_side, collate_answers, prompt_cache
from salf.errors import UserError
from salf.families import FAMILIES
from salf.plan import FreezePlan
from tests.engine.models.tiny import save_tiny, tiny_network
from tests.own_plan import write_plan_and_base

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32
IGNORED = -100
WINDOWS = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
ROPE = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rows():
    """Examples that begin alike; answers of one to three tokens, and a row whose prompt part ends earlier."""
    made = []
    for n in range(4):
        prompt = [3, 4, 5, 6, 20 + n, *range(40, 43 + 2 * n), 7, 8]
        answer = list(range(60 + n, 61 + n + n % 3))
        made.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    made[1]["split"] = 4
    return made


def points(extra=0):
    """Tokens of each row that the base reads: all of the prompt but its last and ``extra`` more, or as it says."""
    return [row.get("split", row["labels"].count(IGNORED) - 1 - extra) for row in rows()]


class Reference(nn.Module):
    """The same by transformers' own cache, one example at a time, from one model to the other."""

    def __init__(self, base, network):
        super().__init__()
        self.base, self.network, self.config = [base], network, network.config  # the base is no submodule

    def forward(self, input_ids, labels, split, **options):  # of the Trainer's: num_items_in_batch
        total = 0.0
        for ids, marks, s in zip(input_ids, labels, split, strict=True):
            ids, marks, cache = ids[ids > 0][None], marks[ids > 0], DynamicCache()
            with torch.no_grad():
                self.base[0](input_ids=ids[:, :s], past_key_values=cache, use_cache=True)
            logits = self.network(input_ids=ids[:, s:], past_key_values=cache).logits[0, :-1]
            total += nn.functional.cross_entropy(logits, marks[s + 1 :], ignore_index=IGNORED, reduction="sum")
        return {"loss": total / options.get("num_items_in_batch", (labels != IGNORED).sum())}


def reference_batch(chosen):
    padded = {
        name: nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in chosen], True, value)
        for name, value in (("input_ids", 0), ("labels", IGNORED))
    }
    return {**padded, "split": torch.tensor([row["split"] for row in chosen])}


def reference_rows(extra=0):
    return [{**row, "split": split} for row, split in zip(rows(), points(extra), strict=True)]


def freeze(network, boundary, family):
    """By hand: embeddings and layers up to the boundary."""
    for name, parameter in network.named_parameters():
        layer = name.removeprefix(f"{family.layers}.").split(".")[0] if name.startswith(f"{family.layers}.") else None
        parameter.requires_grad_(int(layer) >= boundary if layer else not family.before_layers(name))


def pair(model_type, boundary, **options):
    """A model for us and one for the reference, and its base."""
    model = tiny_network(model_type, **options)
    other, base = copy.deepcopy(model), copy.deepcopy(model)
    freeze(other, boundary, FAMILIES[model_type])
    return model, Reference(base, other)


def assert_same_step(module, batch, reference, expected_batch):
    """Loss and gradients of one step."""
    found, expected = module(**batch), reference(**expected_batch)
    found.loss.backward()
    expected["loss"].backward()
    torch.testing.assert_close(found.loss, expected["loss"], **TOLERANCE)
    theirs = {name: p.grad for name, p in reference.network.named_parameters() if p.requires_grad}
    ours = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("boundary", [0, 2])
@pytest.mark.parametrize("model_type", sorted(name for name, family in FAMILIES.items() if family.packed))
def test_a_step_after_cached_prompts_is_transformers_own(model_type, boundary):
    model, reference = pair(model_type, boundary)
    cache = prompt_cache(model, rows(), boundary)
    batch = collate_answers(list(cache))
    assert batch["labels"].shape[1] == max(
        len(row["labels"]) - split for row, split in zip(rows(), points(), strict=True)
    )
    assert_same_step(answer_side(model, cache), batch, reference, reference_batch(reference_rows()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen2", WINDOWS),
        ("mistral", {"sliding_window": 4}),
        ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
        ("gemma3_text", {"sliding_window": 4}),
        ("llama", {"rope_parameters": {**ROPE, "original_max_position_embeddings": 16}}),
        ("llama", {"attention": "eager"}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"tie_word_embeddings": True}),
    ],
    ids=["windows", "one window", "soft caps", "alternating", "stretched", "eager", "one head", "tied"],
)
@pytest.mark.parametrize("boundary", [0, 2])
def test_a_step_is_transformers_own_with(kind, options, boundary):
    model, reference = pair(kind, boundary, **options)
    cache = prompt_cache(model, rows(), boundary, batch_tokens=24, extra=1)
    batch = collate_answers(list(cache))
    assert_same_step(answer_side(model, cache), batch, reference, reference_batch(reference_rows(extra=1)))


@pytest.mark.parametrize("kind", ["mamba", "bloom", "glm"])
def test_layers_that_take_no_packed_keys_and_values_are_refused(kind):
    with pytest.raises(UserError, match=f"'{kind}': its layers take no keys and values of an earlier pass"):
        prompt_cache(tiny_network(kind), rows())


def adapted(model, **options):
    """LoRA with values that are not at their start."""
    torch.manual_seed(1)
    config = {
        "r": 4,
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
        **options,
    }
    return get_peft_model(model, LoraConfig(**config))


@pytest.mark.parametrize("boundary", [0, 2])
def test_adapters_act_after_the_prompt_alone(boundary):
    model, base = tiny_network(), tiny_network()
    above = {"layers_to_transform": [2, 3]} if boundary else {}
    wrapped, other = adapted(model, **above), adapted(copy.deepcopy(base), **above)
    wrapped.base_model.model.model.layers[3].mlp.up_proj.lora_A.requires_grad_(False)
    other.base_model.model.model.layers[3].mlp.up_proj.lora_A.requires_grad_(False)
    cache = prompt_cache(wrapped, rows(), boundary)
    for mine, plain in zip(cache, prompt_cache(base, rows(), boundary), strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)
    batch = collate_answers(list(cache))
    assert_same_step(answer_side(wrapped, cache), batch, Reference(base, other), reference_batch(reference_rows()))


def trained_with(trainer, settings, folder, model, dataset, collator, **options):
    """A trainer after six steps at a batch of two, with gradients accumulated."""
    arguments = settings(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=6,
        learning_rate=1e-2,
        adam_epsilon=1e-4,  # else a gradient of almost nothing decides by its sign
        save_strategy="no" if isinstance(model, Reference) else "epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        label_names=["labels"],
        remove_unused_columns=False,
        **options.pop("arguments", {}),
    )
    made = trainer(model, arguments, train_dataset=dataset, data_collator=collator, **options)
    made.train()
    return made


@pytest.fixture
def opened(tmp_path):
    """A base's folder, and the model as a user opens it."""
    source = save_tiny(tmp_path / "base")
    return source, lambda: AutoModelForCausalLM.from_pretrained(source)


@pytest.mark.parametrize("lora", [False, True], ids=["weights", "lora"])
@pytest.mark.parametrize("by", ["trainer", "trl"])
@pytest.mark.parametrize("boundary", [0, 2])
def test_trainers_give_the_same_model_and_checkpoints_that_open(tmp_path, opened, tokenizer, by, lora, boundary):
    _, open_base = opened
    model, other = open_base(), open_base()
    above = {"layers_to_transform": [2, 3]} if boundary else {}
    if lora:
        model, other = adapted(model, **above), adapted(other, **above)
    else:
        freeze(other, boundary, FAMILIES["llama"])
    reference = Reference(open_base(), other)
    trained_with(Trainer, TrainingArguments, tmp_path / "theirs", reference, reference_rows(), reference_batch)
    cache = prompt_cache(model, rows(), boundary)
    module, data, options = answer_side(model, cache), cache, {}
    trainer, settings = (Trainer, TrainingArguments) if by == "trainer" else (SFTTrainer, SFTConfig)
    if by == "trl":
        data = cache.to_datasets()
        arguments = {"dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_checkpointing": False}
        options = {"processing_class": tokenizer, "arguments": arguments}
    trained_with(trainer, settings, tmp_path / "ours", module, data, collate_answers, **options)
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    found = AnswerSideModel.from_pretrained(tmp_path / "ours/checkpoint-6")
    ids, s = torch.tensor([rows()[0]["input_ids"]]), points()[0]
    past = DynamicCache()
    open_base()(input_ids=ids[:, :s], past_key_values=past, use_cache=True)
    expected = other.eval()(input_ids=ids[:, s:], past_key_values=past).logits[0]
    torch.testing.assert_close(found(ids, split=[s]).logits[0, s:], expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def tokenizer(hub_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hub_folder)


def test_an_adapters_checkpoint_is_pefts_alora_and_a_trainer_resumes_from_it(tmp_path, opened):
    _, open_base = opened
    data = without_splits()

    def run(folder, model, **resume):
        cache = prompt_cache(model, data, extra=1)
        arguments = TrainingArguments(str(folder), max_steps=4, save_steps=2, report_to="none", use_cpu=True)
        Trainer(answer_side(model, cache), arguments, train_dataset=cache, data_collator=collate_answers).train(
            **resume
        )
        return model

    first = run(tmp_path / "out", adapted(open_base()))
    theirs = PeftModel.from_pretrained(open_base(), tmp_path / "out/checkpoint-4")
    assert theirs.active_peft_config.alora_invocation_tokens == [7, 8]
    ours = AnswerSideModel.from_pretrained(tmp_path / "out/checkpoint-4")
    prompt = torch.tensor([data[2]["input_ids"][:-3]])
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert ours.generate(prompt, **options).tolist() == theirs.generate(input_ids=prompt, **options).tolist()
    again = run(tmp_path / "out", adapted(open_base()), resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    torch.testing.assert_close(dict(again.named_parameters()), dict(first.named_parameters()), **TOLERANCE)


@pytest.mark.parametrize("where", [5, None, 99], ids=["early", "by the record", "in the answer"])
def test_scores_split_rows_where_the_cache_did(tmp_path, opened, where):
    _, open_base = opened
    model, data = open_base(), [{**row, "split": where} for row in rows()]
    cache = prompt_cache(model, data, extra=0 if where else 2)
    answer = answer_side(model, cache)
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight += 0.1
        losses = [answer(**collate_answers([item])).loss * (item["labels"] != IGNORED).sum() for item in cache]
    answer.save_pretrained(tmp_path / "out")
    found = AnswerSideModel.from_pretrained(tmp_path / "out").score(data)
    torch.testing.assert_close(found, -torch.stack(losses), **TOLERANCE)


def test_a_file_serves_full_weights_and_adapters_and_nothing_else(tmp_path):
    file = tmp_path / "prompts.safetensors"
    made = prompt_cache(tiny_network(), rows(), file=file)
    found = prompt_cache(adapted(tiny_network()), rows(), file=file)
    assert (made.reused, found.reused) == (False, True)
    torch.testing.assert_close(list(found), list(prompt_cache(tiny_network(), rows())), rtol=0, atol=0)
    changed = tiny_network()
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    kept = file.read_bytes()
    others = [
        (changed, rows(), {}),
        (tiny_network(), rows()[::-1], {}),
        (tiny_network(), rows(), {"extra": 1}),
        (tiny_network(), rows(), {"plan_or_boundary": 2}),
        (tiny_network(), rows(), {"bf16": True}),
    ]
    for model, data, options in others:
        with pytest.raises(UserError, match=r"prompts\.safetensors: not the prompts' keys and values of this model"):
            prompt_cache(model, data, file=file, **options)
    assert file.read_bytes() == kept


def test_the_cache_holds_what_it_says_and_does_not_begin_where_there_is_no_room(monkeypatch):
    whole, half = (prompt_cache(tiny_network(), rows(), bf16=bf16) for bf16 in (False, True))
    tokens = 3 + sum(split - 3 for split in points())  # those that all share are kept once; each row has its own last
    assert whole.size == 2 * half.size == tokens * 4 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, bytes
    for mine, exact in zip(half, whole, strict=True):
        torch.testing.assert_close(mine["past_key_values"].float(), exact["past_key_values"], rtol=0.05, atol=0.05)
    deep, exact = (prompt_cache(tiny_network(), rows(), 2, bf16=bf16) for bf16 in (True, False))
    answer = answer_side(tiny_network(), deep)
    with torch.autocast("cpu", torch.bfloat16):
        found = answer(**collate_answers(list(deep))).loss
    torch.testing.assert_close(found, answer(**collate_answers(list(exact))).loss, rtol=0.02, atol=0.02)
    monkeypatch.setattr(prefix, "free_memory_bytes", lambda: 100)
    with pytest.raises(UserError, match=r"the prompts' keys and values need 0\.0 MiB, and 0\.0 MiB of memory is free"):
        prompt_cache(tiny_network(), rows())


def test_a_plan_gives_the_boundary_and_is_saved_beside_the_weights(hub_folder, tmp_path):
    write_plan_and_base(tmp_path, hub_folder)
    plan = FreezePlan.load(tmp_path / "data/plan")
    model = AutoModelForCausalLM.from_pretrained(hub_folder)
    cache = prompt_cache(model, [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}], plan)
    answer = answer_side(model, cache)
    answer.save_pretrained(tmp_path / "out")
    assert FreezePlan.load(tmp_path / "out") == plan
    assert AnswerSideModel.from_pretrained(tmp_path / "out").record.boundary == cache.boundary == 2


def without_splits():
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows()]


def without_labels():
    return [{"input_ids": row["input_ids"]} for row in rows()]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda: without_labels(), {}, "4 of 4 rows have no prompt part"),
        (lambda: without_splits(), {"extra": 11}, "2 of 4 rows have no prompt part"),
        (lambda: [*rows(), {"input_ids": [5, 6], "labels": [-100, 6]}], {}, "1 of 5 rows have no prompt part"),
        (lambda: rows(), {"plan_or_boundary": 4}, "boundary 4 freezes all layers, so none reads cached prompts"),
        (lambda: rows(), {"plan_or_boundary": 5}, "boundary 5: cached states need 0 to 4 frozen layers"),
    ],
)
def test_rows_without_a_prompt_part_are_counted(change, options, message):
    with pytest.raises(UserError, match=message):
        prompt_cache(tiny_network(), change(), **options)


def test_what_would_be_another_model_is_refused(tmp_path):
    model = tiny_network()
    cache = prompt_cache(model, rows())
    answer, batch = answer_side(model, cache), collate_answers(list(cache))
    with pytest.raises(UserError, match=r"does not generate: .* salf\.AnswerSideModel"):
        answer.generate(torch.tensor([[5, 6]]))
    with pytest.raises(UserError, match="an answer side takes batches of collate_answers"):
        answer(input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(UserError, match="the cache is of another model, whose embedding differs"):
        answer_side(tiny_network(seed=1), cache)
    other = tiny_network()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    answer_side(other, cache)  # weights that train may have been trained before
    for changed, kept in ((other, prompt_cache(model, rows(), 2)), (adapted(copy.deepcopy(other)), cache)):
        with pytest.raises(UserError, match="the cache is of another model, whose layer-02 differs"):
            answer_side(changed, kept)
    with pytest.raises(UserError, match="collate_answers with its boundary"):
        answer(**collate_answers(list(prompt_cache(tiny_network(), rows(), 2))))
    with pytest.raises(UserError, match=r"these are not items of salf\.prompt_cache"):
        collate_answers(without_labels())
    with pytest.raises(UserError, match=re.escape("give PEFT the model, and its wrapper to salf.answer_side")):
        adapted(answer)
    with pytest.raises(UserError, match="PEFT put adapters at or below boundary 2; give it layers_to_transform above"):
        prompt_cache(adapted(tiny_network()), rows(), 2)
    mixture = tiny_network("mixtral", output_router_logits=True)
    with pytest.raises(UserError, match="set the config's output_router_logits to False"):
        answer_side(mixture, prompt_cache(mixture, rows()))
    answer = answer_side(tiny_network(), cache).train()
    answer.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient checkpointing drops cached keys and values; switch it off"):
        answer(**batch)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("default", {"bias": "lora_only"}, "bias = lora_only changes the base's own weights"),
        ("default", {"init_lora_weights": "pissa"}, "init_lora_weights = pissa changes"),
        ("default", {"trainable_token_indices": [60]}, r"trainable_token_indices = \[60\] changes"),
        ("mine", {}, "PEFT's one adapter default, not mine"),
    ],
)
def test_adapters_that_a_folder_could_not_hold_are_refused(name, options, message):
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    wrapped = get_peft_model(tiny_network("qwen2"), config, adapter_name=name)
    cache = prompt_cache(tiny_network("qwen2"), rows())
    for call, last in ((prompt_cache, rows()), (answer_side, cache)):
        with pytest.raises(UserError, match=message):
            call(wrapped, last)


def test_a_model_that_was_trained_reads_no_more_prompts():
    model = tiny_network()
    answer = answer_side(model, prompt_cache(model, rows(), 2))
    assert len(prompt_cache(model, rows())) == 4
    with torch.no_grad():
        answer.model.norm.weight += 0.1
    with pytest.raises(UserError, match="the model was trained since its first prompt cache"):
        prompt_cache(model, rows())


def test_any_dataset_and_loader_does():
    model = tiny_network()
    cache = prompt_cache(model, datasets.Dataset.from_list([{"split": None, **row} for row in rows()]))
    torch.testing.assert_close(list(cache), list(prompt_cache(model, rows())), rtol=0, atol=0)
    answer = answer_side(model, cache)
    losses = [answer(**batch).loss for batch in DataLoader(cache, 2, collate_fn=collate_answers)]
    assert torch.stack(losses).isfinite().all()
