"""DVC's command line, with what it writes of its configuration in UTF-8.

``dvc exp run --temp`` writes the cache's path, the user's DVC configuration and git's into the folder of
the experiment by ConfigObj, which encodes as ASCII unless it is told otherwise. It cannot be told from
outside, so that no experiment ran in a folder whose path holds other letters. DVC itself reads UTF-8.
"""

import sys
from typing import Any

import configobj


class _InUtf8(configobj.ConfigObj):  # type: ignore[misc]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"default_encoding": "utf-8", **options})


if __name__ == "__main__":
    configobj.ConfigObj = _InUtf8
    from dvc.cli import main  # takes ConfigObj as it finds it when it is imported

    sys.exit(main(sys.argv[1:]))
