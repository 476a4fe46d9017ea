"""A callback that applies a freeze plan in transformers' ``Trainer`` and TRL's trainers.

    trainer = Trainer(model=model, ..., callbacks=[FreezePlanCallback("data/plan/freeze_plan.json")])

The plan is applied when the Trainer is created: after it wrapped the model with PEFT (TRL's ``peft_config``), before
it creates its optimizer. Every checkpoint gets a copy of the plan.
"""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from salf.errors import UserError
from salf.plan import FILE_NAME, FreezePlan, apply_freeze_plan


class FreezePlanCallback(TrainerCallback):  # type: ignore[misc]  # transformers is typed in part
    """Applies a freeze plan to a Trainer's model."""

    def __init__(self, plan: FreezePlan | str | Path, scope: str | None = None) -> None:
        """Take a plan, given itself or as a file or folder; ``scope`` names another selector's boundary."""
        self.plan = plan if isinstance(plan, FreezePlan) else FreezePlan.load(plan)
        self.scope = scope
        self._applied = False

    def on_init_end(self, *_: Any, model: Any, **__: Any) -> None:
        """Apply the plan.

        Raises:
            UserError: the model differs from the planned one.
        """
        apply_freeze_plan(model, self.plan, self.scope)
        self._applied = True

    def on_train_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        """Check that the optimizer holds the trained parameters only.

        Raises:
            UserError: the callback was added after the Trainer was created, or the optimizer is older than the plan.
        """
        if not self._applied:
            raise UserError("the freeze plan was not applied: pass the callback when the Trainer is created")
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if frozen := sum(not parameter.requires_grad for parameter in held):
            raise UserError(f"the optimizer holds {frozen} parameters that the plan freezes: give it plan.apply(model)")

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Write the plan into the new checkpoint."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.plan.save(folder / FILE_NAME)
