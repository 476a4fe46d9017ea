"""A race in your own script: `salf.race` trains several methods and learning rates on your rows, and keeps the best."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from salf.engine.answer_model import AnswerSideModel, prompt_tokens, save_answer_side
from salf.engine.batches import Example, Split
from salf.engine.boundary_cache.folder import tensor_digest, units_in_memory
from salf.engine.models.adapter import CausalModel, take_apart
from salf.engine.prefix import IGNORED, Rows, read_rows, shared_tokens
from salf.engine.runtime import Runtime
from salf.engine.suffix import network_of
from salf.engine.training.workbench import Workbench
from salf.engine.tuning import Arm, Found, Tuning, best_of, race_settings
from salf.errors import UserError
from salf.files import code_hashes, digest_of, work_folder, write_json
from salf.methods import method_of
from salf.plan import FreezePlan
from salf.records import RaceRecord, fault_of
from salf.settings import Finetune, Race
from salf.shape import ModelShape

DEFAULTS: Final[Mapping[str, Any]] = {
    "epochs": 3,
    "batch_size": 16,
    "accumulate": 1,
    "gradient_checkpointing": False,
    "processes": 1,
    "learning_rate": {},
    "schedule": "warmup-stable-decay",
    "warmup_share": 0.1,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "lisa_layers": 2,
    "lisa_steps": 5,
    "equal_compute": False,
    "evaluations_per_epoch": 0,
    "checkpoint_minutes": 5.0,
    "cache": "memory",
    "cache_folder": "boundary_cache",
    "cache_gib": 20.0,
}
"""Settings of the arms: those of the group `finetune` in `params.yaml`."""


class Raced(NamedTuple):
    """The winner of a race.

    Attributes:
        model: the trained model, in eval mode: of the class that was given; with LoRA PEFT's wrapper around it; with
            `+answer` a `salf.AnswerSideModel`.
        record: the arms, every look with its decisions, and what they cost.
    """

    model: Any
    record: RaceRecord

    def save(self, folder: str | Path) -> None:
        """Write the model as transformers, PEFT or `AnswerSideModel` opens it, and the record as `race.json`."""
        place = Path(folder)
        if isinstance(self.model, AnswerSideModel):
            save_answer_side(place, self.model.trained, self.model.record)
        else:
            self.model.save_pretrained(place)
        write_json(place / "race.json", self.record.model_dump(mode="json"))


def race(
    model: nn.Module,
    arms: Mapping[str, float | Sequence[float]],
    train: Rows,
    validation: Rows,
    *,
    plan: FreezePlan | None = None,
    keep: int = 1,
    seed: int = 1,
    bf16: bool = False,
    folder: str | Path | None = None,
    **settings: Any,
) -> Raced:
    """Train several methods and learning rates, drop the worse ones on the way, and return the winner.

    Every method with one of its rates is an arm. All arms read the same rows in the same order, after a shared pass
    through frozen layers and prompts. After each epoch but the last, arms are compared by their losses on the
    validation rows: those that are significantly worse than the leader are dropped (paired one-sided t-test, level
    0.05 divided by the number of other arms and looks). The rate is constant until then, and falls to 0 in the last
    epoch.

        raced = salf.race(model, {"full+answer+lora": [5e-4, 1e-3], "half": 2e-4}, train, validation)
        raced.model, raced.record.flops

    Args:
        model: a Hugging Face causal language model with the weights to begin from, on the device to train on, in
            float32. It is not changed.
        arms: learning rates by method, as in `compare.methods`: a scope (`full`, `half`, `freeze-<k>`, or a selector of
            the plan), alone or with `+answer`, `+lora`, `+answer+lora`.
        train: rows with `input_ids` and `labels`, which are -100 over the prompt and the row's tokens after it.
            `attention_mask` marks padding. An optional column `split` says how many of a row's tokens the base reads
            with `+answer`, if fewer than the prompt without its last token.
        validation: rows of the same kind that decide between the arms.
        plan: a freeze plan, for methods that begin with one of its selectors.
        keep: the maximum number of arms that survive the first epoch.
        seed: of the order of rows, and of new adapters.
        bf16: multiply in bfloat16 (autocast).
        folder: where unfinished training is kept; a race that is started again with the same arguments goes on from
            there, and one with others starts over. `None`: a temporary folder.
        settings: of the group `finetune` in `params.yaml`, such as `epochs`, `batch_size` or `lora_rank`.

    Raises:
        UserError: there are no arms or no rows, an arm appears twice or cannot be trained, its method is unknown, a
            setting does not exist, or a row is no prompt with an answer; says which.
    """
    network = network_of(model)
    if hasattr(model, "peft_config"):
        raise UserError("give race the plain model: methods with +lora add adapters themselves")
    asked, wanted = _checked(arms, keep, settings)
    with ExitStack() as stack:
        place = Path(folder) if folder else Path(stack.enter_context(TemporaryDirectory(prefix="salf-race-")))
        runtime = Runtime(torch.device(str(network.device)), torch.bfloat16 if bf16 else torch.float32, "as asked")
        vocabulary = network.get_input_embeddings().weight.shape[0]
        splits = [_split(rows, name, vocabulary) for rows, name in ((train, "train"), (validation, "validation"))]
        inputs = {
            "model": [str(network.config.to_dict()), tensor_digest(network.state_dict().items()) if folder else None],
            "runtime": [runtime.device.type, runtime.dtype_name],
            "race": [asked.model_dump(), wanted.model_dump(mode="json"), seed],
            "plan": plan and plan.model_dump(mode="json"),
            "rows": [repr(split) for split in splits],
            "code": code_hashes(),
        }
        tuning = Tuning(
            bench=_InMemory(base=place, runtime=runtime, settings=race_settings(wanted), network=network),
            plan=plan,
            name="race",
            seed=seed,
            first_n=None,
            training=splits[0],
            validation=splits[1],
            test=None,
            rule=None,
            facts={"free": "salf.race"},
            arms=[Arm(method_of(name), rate) for name, rate in asked.pairs],
            keep=asked.keep,
            unfinished=work_folder(place / "race", digest_of(inputs)),
        )
        found = best_of(tuning)
    assert found.race is not None, "a race"
    return Raced(_model(found, network), found.race)


def _checked(arms: Mapping[str, Any], keep: int, settings: Mapping[str, Any]) -> tuple[Race, Finetune]:
    listed = [
        {"method": name, "learning_rate": list(rates) if isinstance(rates, Sequence) else rates}
        for name, rates in arms.items()
    ]
    try:
        asked = Race.model_validate({"arms": listed, "keep": keep})
        wanted = Finetune.model_validate({**DEFAULTS, **settings})
    except ValidationError as error:
        raise UserError(f"race: {fault_of(error)}") from None
    if wanted.equal_compute or wanted.decided_by_looks or wanted.processes > 1:
        raise UserError("race: equal_compute, patience, keep: best and several processes do not fit a race")
    return asked, wanted


def _split(rows: Rows, name: str, vocabulary: int) -> Split:
    """Rows as prompts with answers; the base reads up to ``split``."""
    if not len(rows):
        raise UserError(f"race: {name} has no rows")
    whole, labels = read_rows(rows, vocabulary)
    examples = []
    for number, (row, marks) in enumerate(zip(whole, labels, strict=True)):
        ids, prompt = row.prompt_ids, prompt_tokens(marks)
        if not 0 < prompt < len(ids) or marks[prompt:].tolist() != list(ids[prompt:]):
            raise UserError(f"race: {name}, row {number}: labels are {IGNORED} over a prompt, then its answer's tokens")
        end = int(rows[number].get("split", prompt))
        examples.append(Example(str(number), None, "", "", ids[:prompt], ids[prompt:], field_end=end))
    return Split(examples, shared_tokens([example.prompt_ids for example in examples]))


def _model(found: Found, base: PreTrainedModel) -> Any:
    """The winner's model, with the attention that its class had before."""
    form, network = found.trainable.form, found.trainable.model.network
    network.set_attn_implementation(base.config._attn_implementation)
    trained = form.opened(network)
    if found.setup.answer_side is None:
        return trained.eval()
    return AnswerSideModel(
        base, trained, found.setup.answer_side.model_copy(update={"form": found.arm.method.form.name})
    )


@dataclass(frozen=True, kw_only=True)
class _InMemory(Workbench):
    """A workbench on a model in memory, of which every arm trains a copy."""

    network: PreTrainedModel

    @cached_property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.network.config.to_dict())

    def open(self, boundary: int) -> CausalModel:
        del boundary  # no layer is quantised or offloaded
        network: PreTrainedModel = copy.deepcopy(self.network)
        network.requires_grad_(False)
        return take_apart(network.train(False))

    def units(self, model: CausalModel, layers: int) -> tuple[str, ...]:
        return units_in_memory(model, layers)
