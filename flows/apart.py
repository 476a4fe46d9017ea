"""DVC's command line for experiments, with names beyond ASCII and parameters of any value. Run by its path."""

import json
import sys
from typing import Any, Final

import configobj
import ruamel.yaml
from omegaconf import OmegaConf

RESOLVER: Final = "salf"  # of OmegaConf, by which Hydra and DVC read parameters


class InUtf8(configobj.ConfigObj):  # type: ignore[misc]
    """By default it encodes as ASCII: no experiment would run in a folder, or for a user, with other letters."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"default_encoding": "utf-8", **options})


class Unfolded(ruamel.yaml.YAML):
    """By default it breaks lines after 80 characters, names too, and cannot read them again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.width = 1 << 20


def spelled(key: str, value: Any) -> str:
    """Write a parameter for ``--set-param``: Hydra's grammar has no spelling for every text and mapping."""
    return f"++{key}=${{{RESOLVER}:x{json.dumps(value).encode().hex()}}}"


configobj.ConfigObj = InUtf8
ruamel.yaml.YAML = Unfolded  # type: ignore[misc]
OmegaConf.register_new_resolver(RESOLVER, lambda word: json.loads(bytes.fromhex(word[1:])), replace=True)

if __name__ == "__main__":
    from dvc.cli import main  # takes ConfigObj as it finds it when it is imported

    sys.exit(main(sys.argv[1:]))
