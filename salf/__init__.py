"""SALF: where to fine-tune a language model, and what that saves.

Names are imported when they are first used: ``import salf`` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from salf.callback import FreezePlanCallback as FreezePlanCallback
    from salf.cost import training_flops as training_flops
    from salf.engine.answer_model import AnswerSideModel as AnswerSideModel
    from salf.engine.answer_side import PromptCache as PromptCache
    from salf.engine.answer_side import answer_side as answer_side
    from salf.engine.answer_side import collate_answers as collate_answers
    from salf.engine.answer_side import prompt_cache as prompt_cache
    from salf.engine.prefix import PrefixStates as PrefixStates
    from salf.engine.prefix import collate_states as collate_states
    from salf.engine.prefix import prefix_states as prefix_states
    from salf.engine.race import Raced as Raced
    from salf.engine.race import race as race
    from salf.engine.suffix import suffix as suffix
    from salf.engine.techniques.dcp import generation_costs as generation_costs
    from salf.engine.techniques.dcp import pruned as pruned
    from salf.engine.techniques.roste import quantised as quantised
    from salf.engine.techniques.zeroth_order import gradient_shares as gradient_shares
    from salf.errors import UserError as UserError
    from salf.export import FORMATS as FORMATS
    from salf.plan import FreezePlan as FreezePlan
    from salf.plan import apply_freeze_plan as apply_freeze_plan
    from salf.shape import ModelShape as ModelShape

_PLACES: Final = {
    "AnswerSideModel": "engine.answer_model",
    "FORMATS": "export",
    "FreezePlan": "plan",
    "FreezePlanCallback": "callback",
    "ModelShape": "shape",
    "PrefixStates": "engine.prefix",
    "PromptCache": "engine.answer_side",
    "Raced": "engine.race",
    "UserError": "errors",
    "answer_side": "engine.answer_side",
    "apply_freeze_plan": "plan",
    "collate_answers": "engine.answer_side",
    "collate_states": "engine.prefix",
    "generation_costs": "engine.techniques.dcp",
    "gradient_shares": "engine.techniques.zeroth_order",
    "prefix_states": "engine.prefix",
    "prompt_cache": "engine.answer_side",
    "pruned": "engine.techniques.dcp",
    "quantised": "engine.techniques.roste",
    "race": "engine.race",
    "suffix": "engine.suffix",
    "training_flops": "cost",
}
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
