"""Runs stages one after the other in one process, for a study on a machine without DVC.

Reads a job per line from standard input, ``{"folder": ..., "commands": [[module, argument, ...], ...]}``, runs its
commands there, and answers with ``{"status": ..., "said": ...}``: 0 or the exit status of the first command that
failed, and the last lines of what all printed. What a stage imports stays for the next one.
"""

import gc
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, Final

LOG: Final = "log"  # in the job's folder
_LAST_BYTES: Final = 4000


def main() -> None:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(_done(Path(job["folder"]), job["commands"])), file=answers, flush=True)


def _done(folder: Path, commands: list[list[str]]) -> dict[str, Any]:
    os.chdir(folder)
    log = folder / LOG
    with log.open("w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        status = next((status for command in commands if (status := _status(command))), 0)
        sys.stdout.flush()
        sys.stderr.flush()
    _forget()
    return {"status": status, "said": log.read_bytes()[-_LAST_BYTES:].decode(errors="replace")}


def _status(command: list[str]) -> int:
    """Run ``python -m`` with these words in this process; its exit status."""
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _forget() -> None:
    """The last job's tensors go, and with them what the next one would take for its own peak of memory.

    What torch holds of a GPU's memory it keeps: asking for it anew would wait for all other workers.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
