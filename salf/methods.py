"""Names of fine-tuning methods: a scope, which says what trains, or ``<scope>+lora`` for adapters in it.

A scope is the name of a plan's selector (``full``, ``salf``...), whose boundary it takes; ``freeze-<k>``, with
layers 1..k frozen (``freeze-0`` is the scope of ``full``); ``first-n`` or ``lisa``. ``lora`` alone is
``full+lora``. No torch here.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

FIRST_N: Final = "first-n"
LISA: Final = "lisa"

_FREEZE: Final = re.compile(r"freeze-(0|[1-9][0-9]*)")
_LORA: Final = "+lora"


@dataclass(frozen=True)
class Method:
    """What is trained, and whether adapters are trained in it instead of weights."""

    scope: str
    lora: bool = False

    @property
    def boundary(self) -> int | None:
        """The last frozen layer as far as the name tells; ``None`` where a plan's selector decides."""
        known = {"full": 0, FIRST_N: 0, LISA: 0}
        return known[self.scope] if self.scope in known else frozen_by_name(self.scope)


def method_of(name: str) -> Method:
    """The method of a name; whether its scope is one that somebody knows is not looked at."""
    if name == _LORA.removeprefix("+"):
        return Method("full", lora=True)
    return Method(name.removesuffix(_LORA), lora=name.endswith(_LORA))


def frozen_by_name(scope: str) -> int | None:
    """The k of ``freeze-<k>``; ``None`` for any other scope."""
    found = _FREEZE.fullmatch(scope)
    return int(found[1]) if found else None


def checked(name: str, selectors: Collection[str]) -> str:
    """The name, if it is one.

    Raises:
        ValueError: it is none; says what is allowed.
    """
    method = method_of(name)
    if method.lora and method.scope in (FIRST_N, LISA):
        raise ValueError(f"{method.scope} trains weights, never adapters: leave out {_LORA}")
    if method.scope in {*selectors, FIRST_N, LISA} or frozen_by_name(method.scope) is not None:
        return name
    raise ValueError(
        f"no such method; allowed: a selector ({', '.join(selectors)}) or freeze-<k> (layers 1 to k frozen), "
        f"each alone or with {_LORA}; lora (short for full{_LORA}); {FIRST_N}; {LISA}"
    )


def rate_entry(name: str, boundary: int, entries: Collection[str]) -> str | None:
    """Which of the entries of ``finetune.learning_rate`` a method takes, given its boundary; ``None``: there is none.

    Its own, else that of ``full`` where nothing is frozen and of ``salf`` elsewhere (with adapters: of ``lora``
    and ``salf+lora``).
    """
    stand_in = ("lora" if boundary == 0 else "salf+lora") if method_of(name).lora else "salf" if boundary else "full"
    return next((entry for entry in (name, stand_in) if entry in entries), None)
