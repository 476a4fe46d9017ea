"""SALF: where to fine-tune a language model, and what that saves.

Names are imported when they are first used: ``import salf`` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from salf.callback import FreezePlanCallback
    from salf.cost import training_flops
    from salf.engine.answer_model import AnswerSideModel
    from salf.engine.answer_side import PromptCache, answer_side, collate_answers, prompt_cache
    from salf.engine.prefix import PrefixStates, collate_states, prefix_states
    from salf.engine.race import Raced, race
    from salf.engine.suffix import suffix
    from salf.engine.techniques.dcp import generation_costs, pruned
    from salf.engine.techniques.roste import quantised
    from salf.engine.techniques.zeroth_order import gradient_shares
    from salf.errors import UserError
    from salf.export import FORMATS
    from salf.plan import FreezePlan, apply_freeze_plan
    from salf.shape import ModelShape

_NAMES: Final = {
    "callback": ("FreezePlanCallback",),
    "cost": ("training_flops",),
    "engine.answer_model": ("AnswerSideModel",),
    "engine.answer_side": ("PromptCache", "answer_side", "collate_answers", "prompt_cache"),
    "engine.prefix": ("PrefixStates", "collate_states", "prefix_states"),
    "engine.race": ("Raced", "race"),
    "engine.suffix": ("suffix",),
    "engine.techniques.dcp": ("generation_costs", "pruned"),
    "engine.techniques.roste": ("quantised",),
    "engine.techniques.zeroth_order": ("gradient_shares",),
    "errors": ("UserError",),
    "export": ("FORMATS",),
    "plan": ("FreezePlan", "apply_freeze_plan"),
    "shape": ("ModelShape",),
}
_PLACES: Final = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _PLACES:
        raise AttributeError(f"module 'salf' has no attribute {name!r}")
    try:
        return getattr(import_module(f"salf.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        from salf.errors import UserError

        missing = f"salf.{name} needs {error.name}, which is not installed"
        raise UserError(f'{missing}: pip install "/path/to/this/project[training]"') from None
