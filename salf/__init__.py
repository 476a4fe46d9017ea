"""SALF: where to fine-tune a language model, and what that saves.

Names are imported when they are first used: ``import salf`` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from salf.callback import FreezePlanCallback
    from salf.errors import UserError
    from salf.export import FORMATS
    from salf.plan import FreezePlan, apply_freeze_plan

__all__ = ["FORMATS", "FreezePlan", "FreezePlanCallback", "UserError", "apply_freeze_plan"]

_PLACES: Final = {
    "FORMATS": "salf.export",
    "FreezePlan": "salf.plan",
    "FreezePlanCallback": "salf.callback",
    "UserError": "salf.errors",
    "apply_freeze_plan": "salf.plan",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _PLACES:
        raise AttributeError(f"module 'salf' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
