"""The other side: what people use today, on the same examples with the same settings, and over our public calls.

The clock of contenders over something cached includes filling the cache.
"""

import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from salf.engine.answer_side import answer_side, collate_answers, prompt_cache
from salf.engine.batches import Example, inference_batches
from salf.engine.prefix import IGNORED, collate_states, prefix_states
from salf.engine.runtime import find_runtime
from salf.engine.suffix import suffix
from stages.bench.contender import Lap, now
from stages.bench.workloads import RATE, Task
from stages.common.params import load_params

Rows = Sequence[dict[str, list[int]]]


class HuggingFaceTrainer:
    """transformers' ``Trainer``: dynamic padding, batches of similar length, no evaluation, nothing saved."""

    sampling = "group_by_length"

    def __init__(self, task: Task) -> None:
        self.task, self.params = task, load_params().finetune
        self.runtime = find_runtime(task.device)
        self.device = self.runtime.device
        disable_progress_bar()
        self.network: PreTrainedModel = _open(task, torch.float32).to(self.device)

    def run(self, *, boundary: int, epochs: int, examples: int) -> Lap:
        """Fine-tune with embeddings and layers 1..boundary frozen; seconds up to the end of each epoch.

        The clock starts when training does: setting the Trainer up would weigh more here than in a long run.
        """
        self.freeze(boundary)
        return Lap(self.train(self.network, self.rows(examples), pad, epochs))

    def rows(self, examples: int) -> list[dict[str, list[int]]]:
        """The first examples, tokenised."""
        return [labelled(example) for example in self.task.examples[:examples]]

    def train(self, network: Any, rows: Any, collate: Any, epochs: int) -> list[float]:
        """Train what requires gradients; seconds up to the end of each epoch."""
        clock = _Clock(self.device)
        with tempfile.TemporaryDirectory() as folder:
            arguments = self._arguments(folder, epochs)
            Trainer(network, arguments, collate, train_dataset=rows, callbacks=[clock]).train()
        self.network.zero_grad(set_to_none=True)
        return [at - clock.began for at in clock.times]

    def freeze(self, boundary: int) -> None:
        """Turn gradients off for embeddings and layers 1..boundary; boundary 0 freezes nothing."""
        self.network.requires_grad_(True)
        if boundary:
            for part in (self.network.get_input_embeddings(), *self.network.model.layers[:boundary]):
                part.requires_grad_(False)

    def _arguments(self, folder: str, epochs: int) -> TrainingArguments:
        return TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=self.task.batch_size,
            train_sampling_strategy=self.sampling,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            weight_decay=self.params.weight_decay,
            max_grad_norm=self.params.clip_norm,
            optim="adamw_torch_fused",
            bf16=self.runtime.dtype == torch.bfloat16,
            use_cpu=self.device.type == "cpu",
            dataloader_pin_memory=self.device.type == "cuda",
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=1,
        )


class HuggingFaceLora(HuggingFaceTrainer):
    """The same with peft's LoRA on the linear maps of all layers."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        torch.manual_seed(1)
        adapters = LoraConfig(
            r=self.params.lora_rank,
            lora_alpha=self.params.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self.network = get_peft_model(self.network, adapters)

    def freeze(self, boundary: int) -> None:
        """Nothing to do: peft has frozen all but the adapters."""


class CachedTrainer(HuggingFaceTrainer):
    """The Trainer over something cached."""

    sampling = "random"  # grouping by length reads the lengths off tokens

    def run(self, *, boundary: int, epochs: int, examples: int) -> Lap:
        """Fine-tune above the boundary; seconds up to the end of each epoch, those of filling the cache included."""
        self.freeze(boundary)
        began = now(self.device)
        trained = self.cached(self.rows(examples), boundary, self.runtime.dtype == torch.bfloat16)
        before = now(self.device) - began
        return Lap([before + lap for lap in self.train(*trained, epochs)])

    @abstractmethod
    def cached(self, rows: Rows, boundary: int, bf16: bool) -> tuple[Any, Any, Any]:
        """Return the model, dataset and collator to train with."""


class PrefixTrainer(CachedTrainer):
    """The Trainer over boundary states (``salf.prefix_states``, ``salf.suffix``)."""

    def cached(self, rows: Rows, boundary: int, bf16: bool) -> tuple[Any, Any, Any]:
        """Run the frozen layers once."""
        states = prefix_states(self.network, rows, boundary, bf16=bf16)
        return suffix(self.network, boundary), states, collate_states


class PromptTrainer(CachedTrainer):
    """The Trainer over what follows cached prompts (``salf.prompt_cache``, ``salf.answer_side``)."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.base = {name: weights.clone() for name, weights in self.network.state_dict().items()}

    def freeze(self, boundary: int) -> None:
        """Restore the weights before any training, too: they alone may read prompts."""
        super().freeze(boundary)
        self.network.load_state_dict(self.base)

    def cached(self, rows: Rows, boundary: int, bf16: bool) -> tuple[Any, Any, Any]:
        """Read the prompts once."""
        cache = prompt_cache(self.network, rows, boundary, bf16=bf16)
        return answer_side(self.network, cache), cache, collate_answers


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Notes the time when training begins, and at the end of each epoch."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.began, self.times = device, 0.0, list[float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = now(self.device)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.times.append(now(self.device))


def labelled(example: Example) -> dict[str, list[int]]:
    """Inputs, and as labels the answer alone."""
    ids = [*example.prompt_ids, *example.answer_ids]
    return {"input_ids": ids, "labels": [IGNORED] * len(example.prompt_ids) + list(example.answer_ids)}


def pad(rows: Rows) -> dict[str, Tensor]:
    """A batch padded on the right to its longest row."""

    def grid(parts: list[Tensor], filler: int) -> Tensor:
        return pad_sequence(parts, batch_first=True, padding_value=filler)

    ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    mask = [torch.ones_like(row) for row in ids]
    return {"input_ids": grid(ids, 0), "labels": grid(labels, IGNORED), "attention_mask": grid(mask, 0)}


class Forward:
    """Plain forward passes over padded batches."""

    def __init__(self, task: Task) -> None:
        self.task, self.batch_tokens = task, load_params().trace.batch_tokens
        runtime = find_runtime(task.device)
        self.device = runtime.device
        disable_progress_bar()
        self.network = _open(task, runtime.dtype).to(self.device).eval()

    @torch.no_grad()
    def run(self, *, examples: int) -> Lap:
        """Run the layers once over the first examples."""
        rows = [{"input_ids": list(one.inputs), "labels": list(one.inputs)} for one in self.task.examples[:examples]]
        began = now(self.device)
        for index in inference_batches([len(row["input_ids"]) for row in rows], self.batch_tokens):
            padded = pad([rows[i] for i in index])
            inputs = {name: padded[name].to(self.device) for name in ("input_ids", "attention_mask")}
            self.network.model(**inputs, use_cache=False)
        return Lap([now(self.device) - began])


def _open(task: Task, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(task.folder, dtype=dtype)
