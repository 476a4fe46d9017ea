"""A small base model with a freeze plan, where the pages of docs/ look for them."""

import json
import shutil
from pathlib import Path

from transformers import AutoModelForCausalLM

from tests.plan_data import artifact

BOUNDARY = 2


def write_plan_and_base(root: Path, hub_folder: Path) -> None:
    """``data/base`` and ``data/plan/freeze_plan.json``, layers 1 to 2 of 4 frozen."""
    shutil.copytree(hub_folder, root / "data/base")
    (root / "data/plan").mkdir()
    model = AutoModelForCausalLM.from_pretrained(hub_folder)
    plan = artifact(BOUNDARY)
    plan["model"] |= {"hidden": model.config.hidden_size, "vocabulary": model.config.vocab_size}
    plan["parameters"]["total"] = model.num_parameters()
    plan["exports"]["peft"] = {"target_modules": ["q_proj"], "layers_to_transform": [2, 3], "layers_pattern": "layers"}
    (root / "data/plan/freeze_plan.json").write_text(json.dumps(plan))


def changed_parts(root: Path, folder: str) -> set[str]:
    """Layers, by their number from 0, whose weights differ from the base's; what else differs by its name."""
    base, tuned = (AutoModelForCausalLM.from_pretrained(root / f).state_dict() for f in ("data/base", folder))
    changed = {name for name in base if not base[name].equal(tuned[name])}
    return {name.split(".")[2] if ".layers." in name else name for name in changed}
