"""Whether what was kept under some settings counts under others: the study and its analysis ask the same."""

from collections.abc import Mapping
from typing import Any

from stages.common.params import OLD_BALANCE


def still_holds(kept: Any, now: Any) -> bool:
    """Whether all that kept settings name has the value that it has now; what they do not name may be new.

    ``data.balance`` of release 0.1.0 was true or false.
    """
    if isinstance(kept, Mapping):
        return isinstance(now, Mapping) and all(key in now and still_holds(kept[key], now[key]) for key in kept)
    return bool(kept == now or (isinstance(kept, bool) and OLD_BALANCE[kept] == now))
