"""Answer-side folders: what opens them, what must not; the reference is transformers' own past keys and values."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, LlamaForCausalLM
from transformers.loss.loss_utils import ForCausalLMLoss

from salf.answer_folder import AnswerSideRecord, invocation_tokens, trained_prompt_tokens
from salf.cli import main
from salf.engine.answer_model import AnswerSideModel, describe, save_answer_side
from salf.errors import UserError
from tests.engine.models.tiny import save_tiny, tiny_network

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32
PROMPTS = [([3, 4, 5, 6, 7, 8], 4), ([9, 10, 11, 7, 8], 3), ([12, 13, 14, 15, 16, 17, 7, 8], 6)]  # tokens, split
ANSWERS = [[20, 21], [22], [23, 24, 25]]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def moved(network):
    """Stands for training: whatever requires a gradient has other values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def batch(side):
    """Prompts with answers as a batch: ids, mask, labels, [B, T]."""
    rows = [torch.tensor(prompt + answer) for (prompt, _), answer in zip(PROMPTS, ANSWERS, strict=True)]
    labels = [row.clone() for row in rows]
    for row, (prompt, _) in zip(labels, PROMPTS, strict=True):
        row[: len(prompt)] = -100
    padded = [(rows, 0), ([torch.ones_like(row) for row in rows], 0), (labels, -100)]
    return [torch.nn.utils.rnn.pad_sequence(part, True, value, padding_side=side) for part, value in padded]


def reference(base, trained, row, split):
    """Logits [T, vocabulary] of one row without padding: transformers' own cache from one model to the other."""
    ids, cache = torch.tensor([row]), DynamicCache()
    with torch.no_grad():
        first = base(input_ids=ids[:, :split], past_key_values=cache, use_cache=True).logits[0]
        return torch.cat([first, trained(input_ids=ids[:, split:], past_key_values=cache).logits[0]])


@pytest.fixture(params=["llama", "gemma2", "gpt2"])
def tuned(request, tmp_path):
    """A base's folder, the base and the same network with other weights above layer 2; and the folder of these."""
    source = save_tiny(tmp_path / "base", request.param)
    base, network = (AutoModelForCausalLM.from_pretrained(source) for _ in range(2))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".2." in name or ".3." in name)
    record = describe(network, 2, PROMPTS)
    save_answer_side(tmp_path / "out", moved(network), record)
    return tmp_path / "out", base, network


def test_an_opened_folder_gives_the_logits_of_base_and_trained_model(tuned):
    folder, base, network = tuned
    opened = AnswerSideModel.from_pretrained(folder)
    for side in ("left", "right"):
        ids, mask, labels = batch(side)
        output = opened(ids, mask, labels)
        expected = [reference(base, network, p + a, s) for (p, s), a in zip(PROMPTS, ANSWERS, strict=True)]
        for found, kept, wanted in zip(output.logits, mask.bool(), expected, strict=True):
            torch.testing.assert_close(found[kept], wanted, **TOLERANCE)
        loss = ForCausalLMLoss(output.logits, labels, output.logits.shape[-1])
        torch.testing.assert_close(output.loss, loss, **TOLERANCE)
    rows = [
        {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
        for (prompt, _), answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    nats = [
        logits.log_softmax(-1)[len(p) - 1 : -1].gather(1, torch.tensor(a)[:, None]).sum()
        for logits, (p, _), a in zip(expected, PROMPTS, ANSWERS, strict=True)
    ]
    torch.testing.assert_close(opened.score(rows, batch_tokens=20), torch.stack(nats), **TOLERANCE)


def test_prompts_are_continued_greedily_and_by_beams(tuned):
    folder, base, network = tuned
    opened = AnswerSideModel.from_pretrained(folder)
    rows = [prompt for prompt, _ in PROMPTS]
    ids = torch.tensor([[0] * (8 - len(row)) + row for row in rows])
    found = opened.generate(ids, (ids != 0).long(), max_new_tokens=4, do_sample=False, eos_token_id=None)
    config = GenerationConfig(max_new_tokens=3, num_beams=3, do_sample=False)
    beams = opened.generate(ids, (ids != 0).long(), generation_config=config)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    assert opened.generate(ids, (ids != 0).long(), use_cache=False, **options).equal(found)
    opened.generation_config.num_beams = 3
    assert opened.generate(ids, (ids != 0).long(), max_new_tokens=3, do_sample=False).equal(beams)
    for (row, split), tokens, searched in zip(PROMPTS, found, beams, strict=True):
        greedy = list(row)
        for _ in range(4):
            greedy.append(int(reference(base, network, greedy, split)[-1].argmax()))
        assert tokens[8 - len(row) :].tolist() == greedy
        cache = DynamicCache()
        base(input_ids=torch.tensor([row[:split]]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(3)
        alone = network.generate(torch.tensor([row]), past_key_values=cache, generation_config=config)
        assert searched[8 - len(row) :].tolist() == alone[0].tolist()


def test_frozen_tensors_are_the_bases_own_and_trained_ones_are_not(tuned):
    opened = AnswerSideModel.from_pretrained(tuned[0])
    base, trained = dict(opened.base.named_parameters()), dict(opened.trained.named_parameters())
    apart = {name for name, parameter in trained.items() if parameter.data_ptr() != base[name].data_ptr()}
    assert apart == {name for name in trained if ".2." in name or ".3." in name}


def test_transformers_refuses_the_folder(tuned):
    folder, base, _ = tuned
    with pytest.raises(ValueError, match="salf_answer_side"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        type(base).from_pretrained(folder)


def test_another_base_or_a_damaged_folder_is_refused(tmp_path):
    source = save_tiny(tmp_path / "base")
    network = AutoModelForCausalLM.from_pretrained(source)
    save_answer_side(tmp_path / "out", network, describe(network, 0, PROMPTS))
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="has other weights than the model that was tuned"):
        AnswerSideModel.from_pretrained(tmp_path / "out", base=other)
    opened = AnswerSideModel.from_pretrained(tmp_path / "out", base=LlamaForCausalLM.from_pretrained(source))
    ids = torch.tensor([[3, 4, 5]])
    for call in (opened, opened.generate):
        with pytest.raises(UserError, match=r"1 of 1 rows have no prompt part.*say split="):
            call(ids, split=[3])
    with pytest.raises(UserError, match="generate others alone"):
        opened.generate(torch.tensor([[3, 4, 5], [3, 4, 5]]), split=[1, 2])
    with pytest.raises(UserError, match="came from no folder or Hub name"):
        save_answer_side(tmp_path / "more", tiny_network(), describe(tiny_network(), 0, PROMPTS))
    with pytest.raises(UserError, match="base: another model is there; name another folder"):
        save_answer_side(source, network, describe(network, 0, PROMPTS))
    save_answer_side(tmp_path / "out", network.requires_grad_(False), describe(network, 0, PROMPTS))
    assert not list((tmp_path / "out").glob("*.safetensors"))  # nothing is left of what was saved there before
    save_answer_side(tmp_path / "out", network.requires_grad_(True), describe(network, 0, PROMPTS))
    (tmp_path / "out/final.safetensors").unlink()
    with pytest.raises(UserError, match=r"its weights are not those of answer_side\.json"):
        AnswerSideModel.from_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match=r"no answer_side\.json"):
        AnswerSideModel.from_pretrained(source)


def adapted(tmp_path, prompts, kind="llama", **options):
    """A saved adapter, and the base and the adapted model that it is of."""
    source = save_tiny(tmp_path / "base", kind)
    config = copy.deepcopy(LORA)
    vars(config).update(options)
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(source), config)
    save_answer_side(tmp_path / "out", moved(network), describe(network, 0, prompts))
    return tmp_path / "out", source, network


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pefts_own_alora_gives_the_same_answers(tmp_path, kind):
    folder, source, _ = adapted(tmp_path, PROMPTS, kind, fan_in_fan_out=kind == "gpt2")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), folder)
    assert theirs.active_peft_config.alora_invocation_tokens == [7, 8]
    ours = AnswerSideModel.from_pretrained(folder)
    ids = torch.tensor([[0] * (8 - len(row)) + row for row, _ in PROMPTS])
    options = {"attention_mask": (ids != 0).long(), "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert ours.generate(ids, **options).tolist() == theirs.generate(input_ids=ids, **options).tolist()
    ids, mask, labels = batch("left")
    expected = theirs(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(ours(ids, mask, labels).logits[mask.bool()], expected[mask.bool()], **TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["no common beginning", "dora"])
def test_an_adapter_that_peft_could_not_activate_opens_here_alone(tmp_path, options):
    prompts = PROMPTS if options else [([3, 4, 5, 6], 2), ([9, 10, 11, 7], 3)]
    folder, source, network = adapted(tmp_path, prompts, **options)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), folder)
    with pytest.raises(ValueError, match="salf_answer_side"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert "never merge it" in AnswerSideRecord.load(folder).opened_by
    opened = AnswerSideModel.from_pretrained(folder)
    expected = reference(AutoModelForCausalLM.from_pretrained(source), network.eval(), [3, 4, 5, 6, 7], 2)
    torch.testing.assert_close(opened(torch.tensor([[3, 4, 5, 6, 7]]), split=[2]).logits[0], expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("prompts", "tokens", "count"),
    [
        ([([1, 2, 7, 8], 2), ([3, 7, 8], 1)], [7, 8], 2),
        ([([1, 2, 7, 8], 2), ([3, 7, 9], 1)], [7], 2),
        ([([1, 2, 7, 8], 2), ([3, 4, 8], 1)], None, 2),
        ([([1, 7, 5, 7, 8], 1), ([3, 7, 9, 5], 1)], None, None),  # 7 comes again later
        ([([1, 7, 5], 1), ([3, 7, 9, 5], 1)], [7], None),
    ],
)
def test_what_the_trained_sides_begin_with(prompts, tokens, count):
    assert invocation_tokens(prompts) == tokens
    assert trained_prompt_tokens(prompts) == count
    record = AnswerSideRecord.model_construct(trained_prompt_tokens=count, invocation_tokens=tokens)
    if tokens or count:
        assert [record.split_of(ids) for ids, _ in prompts] == [split for _, split in prompts]
    else:
        assert record.split_of([1, 2]) == 0


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["alora", "more than lora"])
def test_target_modules_may_be_a_pattern(tmp_path, options):
    folder, *_ = adapted(tmp_path, PROMPTS, target_modules=r".*\.[qv]_proj", **options)
    trained = AnswerSideModel.from_pretrained(folder).trained
    assert {name.split(".")[-4] for name, _ in trained.named_parameters() if ".lora_A." in name} == {"q_proj", "v_proj"}


def test_an_adapter_of_another_kind_opens_here_alone(tmp_path):
    source = save_tiny(tmp_path / "base")
    config = IA3Config(target_modules=["v_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(source), config)
    save_answer_side(tmp_path / "out", moved(network), describe(network, 0, PROMPTS))
    assert not (tmp_path / "out/adapter_config.json").exists()
    expected = reference(AutoModelForCausalLM.from_pretrained(source), network.eval(), [3, 4, 5, 6, 7], 2)
    found = AnswerSideModel.from_pretrained(tmp_path / "out")(torch.tensor([[3, 4, 5, 6, 7]]), split=[2])
    torch.testing.assert_close(found.logits[0], expected, **TOLERANCE)


def test_no_export_speaks_of_an_answer_side_folder(tmp_path, capsys):
    folder, *_ = adapted(tmp_path, PROMPTS)
    for plan in (folder, folder / "freeze_plan.json"):
        assert main(["export", "--format", "peft", "--plan", str(plan)]) == 2
        assert "weights that act after the prompt part alone" in capsys.readouterr().err
