"""Answer-side models: saved, opened, and in use. The base model reads the prompt part, trained weights the rest."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from salf import answer_folder
from salf.answer_folder import AnswerSideRecord, BaseWeights, Prompt
from salf.engine.batches import inference_batches
from salf.engine.boundary_cache.folder import tensor_digest
from salf.engine.models.causal_model import parameter_names
from salf.engine.models.shards import group_by_unit, write_tensors
from salf.engine.prefix import IGNORED, Rows, read_rows
from salf.engine.suffix import network_of
from salf.engine.training.forms import save_adapter
from salf.errors import UserError, reading
from salf.families import family_of
from salf.files import lasting, read_json, sha256_file, write_json
from salf.parameters import NetworkParameters
from salf.plan import FILE_NAME, FreezePlan
from salf.split_point import base_rows

_PEFT: Final = ("adapter_config.json", "adapter_model.safetensors")
_OURS: Final = ("answer_side_adapter.json", "answer_side_adapter.safetensors")  # PEFT finds no adapter by these names


def describe(model: Any, boundary: int, prompts: Sequence[Prompt]) -> AnswerSideRecord:
    """The record of an answer-side model, to be made before training: it hashes the base's weights.

    Args:
        model: the base, or PEFT's wrapper around it.
        boundary: the last frozen layer.
        prompts: of every example the prompt's tokens, and how many of them the base reads.
    """
    network = network_of(model)
    source = str(network.name_or_path)
    here = bool(source) and Path(source).is_dir()
    return AnswerSideRecord(
        form="weights" if network is model else "lora",
        boundary=boundary,
        base=BaseWeights(
            source=str(lasting(Path(source))) if here else source,
            revision=None if here else getattr(network.config, "_commit_hash", None),
            dtype=str(network.dtype).removeprefix("torch."),
            sha256=weights_by_unit(model),
        ),
        trained_prompt_tokens=answer_folder.trained_prompt_tokens(prompts),
        invocation_tokens=answer_folder.invocation_tokens(prompts),
    )


@contextmanager
def base_alone(model: Any) -> Iterator[None]:
    """Switch PEFT's adapters off for a while, if there are any; what trains stays as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        yield
    for parameter, flag in flags:  # PEFT lets all adapters train that it switches on
        parameter.requires_grad = flag


def weights_by_unit(model: Any) -> dict[str, str]:
    """SHA-256 of the network's own tensors as they are in memory, by unit; adapters do not count."""
    own = NetworkParameters.of(model).own
    units = _by_unit(network_of(model), own)
    with ThreadPoolExecutor() as pool:  # hashing holds no lock of the interpreter's
        digests = pool.map(lambda names: tensor_digest((name, own[name]) for name in names), units.values())
        return dict(zip(units, digests, strict=True))


def _by_unit(network: PreTrainedModel, names: Iterable[str]) -> dict[str, list[str]]:
    family = family_of(network.config.model_type, [name for name, _ in network.named_parameters()])
    return group_by_unit(names, family, network.config.get_text_config().num_hidden_layers)


def save_answer_side(folder: Path, model: Any, record: AnswerSideRecord, plan: FreezePlan | None = None) -> None:
    """Write what was trained (parameters that require a gradient, or the adapter) with the record and the plan.

    Transformers does not open the folder: its ``config.json`` names a model type of ours. PEFT opens an adapter where
    the record has invocation tokens, and finds none otherwise.

    Raises:
        UserError: the base has no folder or Hub name that the record could name, or another model is in the folder.
    """
    if (folder / "config.json").exists() and not answer_folder.is_answer_side(folder):
        raise UserError(f"{folder}: another model is there; name another folder")
    if not record.base.source:
        raise UserError("the model came from no folder or Hub name, so nothing names the base: save it, and open it")
    folder.mkdir(parents=True, exist_ok=True)
    if answer_folder.is_answer_side(folder):  # of what was saved here before, nothing stays
        for name in (*AnswerSideRecord.load(folder).files, _PEFT[0], _OURS[0]):
            (folder / name).unlink(missing_ok=True)
    if record.form == "lora":
        files = [_save_adapter(folder, model, record)]
    else:
        trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
        units = {f"{unit}.safetensors": names for unit, names in _by_unit(model, trained).items()}
        for file, names in units.items():
            write_tensors(folder / file, {name: trained[name] for name in names})
        files = list(units)
    if not (folder / _PEFT[0]).exists():
        write_json(folder / "config.json", {"model_type": answer_folder.MODEL_TYPE, "note": answer_folder.OPENED_BY})
    if plan is not None:
        plan.save(folder / FILE_NAME)
    record.model_copy(update={"files": {file: sha256_file(folder / file) for file in files}}).save(folder)


def _save_adapter(folder: Path, model: Any, record: AnswerSideRecord) -> str:
    """Write PEFT's folder; return the name of the file of weights."""
    config = save_adapter(model, folder, record.base.source, record.base.revision)
    plain = config["peft_type"] == "LORA" and not (config["use_dora"] or config["modules_to_save"])
    if plain and record.invocation_tokens:
        write_json(folder / _PEFT[0], {**config, "alora_invocation_tokens": record.invocation_tokens})
        return _PEFT[1]
    for theirs, ours in zip(_PEFT, _OURS, strict=True):
        (folder / theirs).replace(folder / ours)
    return _OURS[1]


class AnswerSideModel(nn.Module):
    """A base model that reads prompt parts, and its answer-side twin that goes on from there.

    Attributes:
        base: the model as it was before training.
        trained: the model with the trained weights; frozen tensors are the base's own. With LoRA the base under
            PEFT's wrapper.
        record: the folder's `answer_side.json`.
    """

    def __init__(self, base: PreTrainedModel, trained: Any, record: AnswerSideRecord) -> None:
        """Put two models together that share their frozen tensors."""
        super().__init__()
        self.base, self.trained, self.record = base, trained, record
        self.config, self.generation_config = base.config, trained.generation_config
        self.eval()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, base: str | Path | PreTrainedModel | None = None, **options: Any
    ) -> Self:
        """Open a folder of an answer-side model, and its base.

        Args:
            folder: a folder with `answer_side.json`.
            base: the base model or its folder, if it is no longer where the record says.
            options: of `AutoModelForCausalLM.from_pretrained` for the base; not its `dtype`, call `to` for that.

        Raises:
            UserError: the folder is damaged, the base cannot be opened, or has other weights than the one that was
                tuned.
        """
        folder = Path(folder)
        record = AnswerSideRecord.load(folder)
        if any(not (folder / f).is_file() or sha256_file(folder / f) != known for f, known in record.files.items()):
            raise UserError(f"{folder}: its weights are not those of {answer_folder.ANSWER_SIDE}; save the model again")
        network = base
        if not isinstance(network, PreTrainedModel):
            source = record.base.source if base is None else str(base)
            known = {"revision": record.base.revision} if base is None else {}
            with reading(source, "the base model cannot be opened; name its folder as base="):
                network = AutoModelForCausalLM.from_pretrained(
                    source, **{**known, "dtype": record.base.dtype, **options}
                )
        if weights_by_unit(network) != record.base.sha256:
            raise UserError(f"{folder}: {network.name_or_path} has other weights than the model that was tuned")
        twin = _with_adapter(network, folder) if record.form == "lora" else _twin(network, folder, record.files)
        return cls(network, twin, record)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        split: Sequence[int] | None = None,
    ) -> CausalLMOutput:
        """Logits [B, T, vocabulary] of token ids [B, T]: the base's up to each split point, the trained model's after.

        Args:
            input_ids: padded on either side, as `attention_mask` [B, T] says.
            attention_mask: 1 for tokens; all are tokens unless given.
            labels: [B, T], -100 is ignored; gives the mean loss. The prompt ends where the labels begin; without
                labels a whole row counts as prompt, so that rows with answers need `split`.
            split: how many tokens of each row the base reads; found by the record unless given.

        Raises:
            UserError: a row has no prompt part, or the record does not tell where it ends.
        """
        kept = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()  # [B, T]
        points = self._split_points(input_ids, kept, labels, split)
        first = kept & (kept.cumsum(1) <= points[:, None])  # the prompt parts, [B, T]
        (prompts, seen), (rest, own) = _moved(input_ids, first, "left"), _moved(input_ids, kept & ~first, "right")
        cache = DynamicCache()
        logits = self._read(prompts, seen, cache)
        both = logits.new_zeros(*input_ids.shape, logits.shape[-1])  # [B, T, vocabulary]
        both[first] = logits[seen.bool()]
        mask = torch.cat([seen, own], dim=1)
        options = {"attention_mask": mask, "past_key_values": cache, **positions(type(self.base), mask, rest.shape[1])}
        both[kept & ~first] = self.trained(input_ids=rest, **options).logits[own.bool()]
        loss = None
        if labels is not None:
            loss = self.base.loss_function(logits=both, labels=labels, vocab_size=both.shape[-1])
        return CausalLMOutput(loss=loss, logits=both)

    @torch.no_grad()
    def score(self, dataset: Rows, batch_tokens: int = 4096) -> Tensor:
        """Log probability of each row's labels, summed over its tokens, in nats: [N].

        Args:
            dataset: rows as of `prompt_cache`: `input_ids`, `labels`, and a column `split` of rows whose prompt parts
                the record does not tell.
            batch_tokens: tokens of a batch, padding included.

        Raises:
            UserError: a row cannot be used, or has no prompt part.
        """
        device = self.base.get_input_embeddings().weight.device
        examples, labels = read_rows(dataset, self.base.get_input_embeddings().weight.shape[0])
        found = torch.zeros(len(examples))
        for group in inference_batches([len(marks) for marks in labels], batch_tokens):
            rows = [torch.tensor(examples[i].prompt_ids) for i in group]
            parts = [(rows, 0), ([torch.ones_like(row) for row in rows], 0), ([labels[i] for i in group], IGNORED)]
            ids, mask, marks = (pad_sequence(part, True, value).to(device) for part, value in parts)
            points = [self._split_point(examples[i].prompt_ids, labels[i], dataset[i].get("split")) for i in group]
            logits = self(ids, mask, marks, points).logits[:, :-1]
            targets = marks[:, 1:]
            nats = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # [B, T - 1]
            found[group] = nats.where(targets != IGNORED, 0).sum(1).cpu()
        return found

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        split: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts, as transformers' `generate`: the base reads the prompt parts, then the trained model runs.

        Args:
            input_ids: [B, T], padded on the left.
            attention_mask: 1 for tokens, [B, T]; all are tokens unless given, padding too.
            split: how many tokens of each row the base reads; found by the record unless given.
            options: of transformers' `generate`.

        Raises:
            UserError: as in `forward`; or prompts of one batch have different numbers of tokens on the trained side.
        """
        kept = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        rest = kept.sum(1) - self._split_points(input_ids, kept, None, split)  # trained tokens of each prompt, [B]
        if not kept[:, -1].all() or (rest != rest[0]).any():
            raise UserError("a batch's prompts have equally many tokens after the split point; generate others alone")
        cache, width = DynamicCache(), input_ids.shape[1] - int(rest[0])
        self._read(input_ids[:, :width], kept[:, :width].long(), cache, logits_to_keep=1)
        asked = {**(options.get("generation_config") or self.generation_config).to_dict(), **options}
        cache.batch_repeat_interleave(max(asked.get("num_beams") or 1, asked.get("num_return_sequences") or 1))
        given = {**options, "attention_mask": kept.long(), "past_key_values": cache, "use_cache": True}
        return self.trained.generate(input_ids=input_ids, **given)

    def _read(self, ids: Tensor, mask: Tensor, cache: DynamicCache, **options: Any) -> Tensor:
        """The base's logits of prompt parts padded on the left, [B, P]; their keys and values go to the cache."""
        placed = positions(type(self.base), mask, ids.shape[1])
        with torch.no_grad(), base_alone(self.trained):
            output = self.base(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **placed, **options
            )
        return output.logits

    def _split_point(self, ids: Sequence[int], labels: Tensor, split: int | None) -> int:
        """How many tokens of a row the base reads: as `prompt_cache` takes a column `split`, or by the record."""
        length = prompt_tokens(labels)
        return self.record.split_of(ids[:length]) if split is None else base_rows(length, int(split))

    def _split_points(self, ids: Tensor, kept: Tensor, labels: Tensor | None, split: Sequence[int] | None) -> Tensor:
        """How many tokens of each row the base reads, [B]."""
        if split is None:
            prompt = kept if labels is None else kept & ((labels != IGNORED).cumsum(1) == 0)
            split = [self.record.split_of(row[mine].tolist()) for row, mine in zip(ids, prompt, strict=True)]
        points = torch.as_tensor(split, device=ids.device)
        if wrong := int(((points < 1) | (points >= kept.sum(1))).sum()):
            raise UserError(f"{wrong} of {len(points)} rows have no prompt part that the record tells; say split=")
        return points


def prompt_tokens(labels: Tensor) -> int:
    """Count the tokens of a row before its first label."""
    return int((labels != IGNORED).cumsum(0).eq(0).sum())


def positions(network: type[nn.Module], mask: Tensor, tokens: int) -> dict[str, Tensor]:
    """The places of the last ``tokens`` columns of a mask [B, T] in their rows, [B, tokens], if the network asks."""
    if "position_ids" not in parameter_names(network.forward):
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - tokens :]}


def _moved(ids: Tensor, chosen: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """The chosen tokens of each row, padded on one side, and which are none: [B, longest] both."""
    rows = [row[mine] for row, mine in zip(ids, chosen, strict=True)]
    padded = partial(pad_sequence, batch_first=True, padding_side=side)
    return padded(rows), padded([torch.ones_like(row) for row in rows])


def _twin(base: PreTrainedModel, folder: Path, files: Iterable[str]) -> PreTrainedModel:
    """A copy of the base with the folder's weights in it; all other tensors are the base's own."""
    trained = dict(chain.from_iterable(load_file(folder / file).items() for file in files))
    everything: Iterable[tuple[str, Tensor]] = chain(base.named_parameters(), base.named_buffers())
    twin: PreTrainedModel = copy.deepcopy(base, {id(one): one for name, one in everything if name not in trained})
    if unknown := twin.load_state_dict(trained, strict=False).unexpected_keys:
        raise UserError(f"{folder}: the base model has no {unknown[0]}")
    return twin


def _with_adapter(base: PreTrainedModel, folder: Path) -> Any:
    """The base under PEFT's wrapper; the adapter acts wherever it is switched on."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    config_file, weights = next(pair for pair in (_PEFT, _OURS) if (folder / pair[0]).exists())
    settings: Mapping[str, Any] = read_json(folder / config_file)
    config = PeftConfig.from_peft_type(**{**settings, "alora_invocation_tokens": None, "inference_mode": True})
    adapted = get_peft_model(base, config)
    set_peft_model_state_dict(adapted, load_file(folder / weights))
    return adapted
