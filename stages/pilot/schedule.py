"""The training schedule of a pilot: that of ``finetune``, as far as it has a say here."""

from salf.settings import Finetune, Schedule


def schedule_of(schedule: Schedule, epochs: int | None) -> Finetune:
    """The settings of a pilot; ``epochs``: over each pilot's examples, ``None``: as many as the fine-tunes'."""
    given = {**dict(schedule), "epochs": epochs or schedule.epochs}
    return Finetune(
        **given,
        processes=1,
        lora_rank=1,
        lora_alpha=1.0,
        lisa_layers=1,
        lisa_steps=1,
        equal_compute=False,
        # The validation split is read at the end alone, and a pilot that is stopped begins anew.
        evaluations_per_epoch=0,
        checkpoint_minutes=0,
    )


def rates_of(schedule: Finetune, boundary: int) -> list[float]:
    """The learning rates to try at a boundary, ascending: those of the method ``freeze-<boundary>``.

    Raises:
        UserError: there is no entry for it.
    """
    return schedule.rates(f"freeze-{boundary}", boundary)
