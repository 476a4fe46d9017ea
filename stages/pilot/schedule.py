"""The training schedule of a pilot: that of ``finetune``, as far as it has a say here."""

from typing import Any

from salf.settings import Finetune


def schedule_of(finetune: Finetune, epochs: int | None) -> Finetune:
    """The parameters of ``finetune`` that ``dvc.yaml`` lists for this stage, and no others: these are absent.

    Args:
        finetune: the parameters of the fine-tunes that the pilots speak for.
        epochs: over each pilot's examples; ``None``: as many as theirs.
    """
    read: dict[str, Any] = {
        "epochs": epochs or finetune.epochs,
        "batch_size": finetune.batch_size,
        "accumulate": finetune.accumulate,
        "gradient_checkpointing": finetune.gradient_checkpointing,
        "schedule": finetune.schedule,
        "warmup_share": finetune.warmup_share,
        "weight_decay": finetune.weight_decay,
        "clip_norm": finetune.clip_norm,
        "cache": finetune.cache,
        "cache_folder": finetune.cache_folder,
        "cache_gib": finetune.cache_gib,
        "learning_rate": finetune.learning_rate,
        # The validation split is read at the end alone, and a pilot that is stopped begins anew.
        "evaluations_per_epoch": 0,
        "checkpoint_minutes": 0,
    }
    return Finetune.model_construct(**read)


def rates_of(schedule: Finetune, boundary: int) -> list[float]:
    """The learning rates to try at a boundary, ascending: those of the method ``freeze-<boundary>``.

    Raises:
        UserError: there is no entry for it.
    """
    return schedule.rates(f"freeze-{boundary}", boundary)
