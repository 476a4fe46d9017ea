"""DVC's command line as experiments need it: names beyond ASCII, and parameters of any value.

Run by its path: the working folder's modules must not count as top ones.
"""

import json
import sys
from typing import Any, Final

import configobj
from omegaconf import OmegaConf

RESOLVER: Final = "salf"


class InUtf8(configobj.ConfigObj):  # type: ignore[misc]
    """DVC writes configuration into an experiment's folder by ConfigObj, which encodes as ASCII by default.

    No experiment would run in a folder whose path, or for a user whose name, has other letters.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"default_encoding": "utf-8", **options})


def spelled(key: str, value: Any) -> str:
    """Write a parameter for ``--set-param``: Hydra's grammar has no spelling for every text and mapping."""
    return f"++{key}=${{{RESOLVER}:x{json.dumps(value).encode().hex()}}}"


def _read(word: str) -> Any:
    return json.loads(bytes.fromhex(word[1:]))


configobj.ConfigObj = InUtf8
OmegaConf.register_new_resolver(RESOLVER, _read, replace=True)

if __name__ == "__main__":
    from dvc.cli import main  # takes ConfigObj as it finds it when it is imported

    sys.exit(main(sys.argv[1:]))
