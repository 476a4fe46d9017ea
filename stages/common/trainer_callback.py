"""A freeze plan inside other people's training loops that are transformers' ``Trainer``, TRL's among them.

::

    trainer = Trainer(model=model, ..., callbacks=[FreezePlanCallback("data/plan/freeze_plan.json")])

The plan is applied when the Trainer has been made and before it makes its optimizer, after PEFT where the
trainer itself wraps the model (TRL's ``peft_config``). It is written into every checkpoint, because
``save_pretrained`` does not keep ``requires_grad``.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stages.common.command import UserError
from stages.common.freeze_plan import FILE_NAME, FreezePlan, apply_freeze_plan


class FreezePlanCallback(TrainerCallback):  # type: ignore[misc]  # transformers is typed in part
    """Applies a plan to a Trainer's model."""

    def __init__(self, plan: FreezePlan | str | Path, scope: str | None = None) -> None:
        """Take the plan, or the file or folder that holds it; ``scope``: another selector's boundary of it."""
        self.plan = plan if isinstance(plan, FreezePlan) else FreezePlan.load(plan)
        self.scope = scope
        self._applied = False

    def on_init_end(self, *_: Any, model: Any, **__: Any) -> None:
        """Freeze.

        Raises:
            UserError: the model is not the planned one.
        """
        apply_freeze_plan(model, self.plan, self.scope)
        self._applied = True

    def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        """Check that the optimizer holds what trains and nothing else.

        Raises:
            UserError: the callback came after the Trainer was made, or the optimizer before the plan.
        """
        if not self._applied:
            raise UserError("the freeze plan was not applied: hand the callback over when the Trainer is made")
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        frozen = sum(not parameter.requires_grad for parameter in held)
        if frozen:
            raise UserError(
                f"the optimizer holds {frozen} parameters that the freeze plan freezes: apply the plan to the model "
                "first and make the optimizer of what plan.apply(model) returns, or let the Trainer make it"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Put the plan into the checkpoint that was just written."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.plan.save(folder / FILE_NAME)
