"""A trial of a foreign model folder's files in a child process with limits on time and memory.

All of them are programs of whoever made the folder: a template can loop for ever, a tokenizer can grow a word to
gigabytes, and a configuration can ask for a table of a billion labels.
"""

import json
import os
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from salf.errors import UserError

MEMORY: Final = 2 << 30  # bytes, in addition to what the child takes to start
SECONDS: Final = 30  # of processor time, and 10 times what the child took to start: machines differ 25-fold
_SAMPLE: Final = f"{string.printable} The quick brown fox jumps over the lazy dog. Größe, 大小, размер, 🙂. " * 20
_NO_MEMORY: Final = 3  # exit code
_CHILD: Final = """
import importlib, json, math, psutil, resource, sys, time
from salf.children import end_with
trials, memory, seconds, parent = json.loads(sys.argv[1])
end_with(parent)  # a killed stage takes its trial along
works = [getattr(importlib.import_module(module), name) for module, name, _ in trials]
allowed, memory = math.ceil(seconds + 10 * time.process_time()), memory + psutil.Process().memory_info().vms
for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, allowed), (resource.RLIMIT_AS, memory)):
    try:
        resource.setrlimit(kind, (most, most + (kind == resource.RLIMIT_CPU)))
    except (ValueError, OSError):
        pass  # a stricter limit holds already, or the system has none
said, sys.stdout = sys.stdout, sys.stderr
for at, (work, trial) in enumerate(zip(works, trials)):
    print(at, file=said, flush=True)
    try:
        work(trial[-1])
    except BaseException as error:  # the caller meets any other fault itself
        while error is not None:
            if isinstance(error, MemoryError):
                sys.exit({no_memory})
            error = error.__context__
"""


def try_out(*trials: tuple[Callable[[str], object], Path]) -> None:
    """Call modules' functions, each with its file, in one child; a ``UserError`` blames the one beyond limits."""
    calls = [(work.__module__, work.__qualname__, str(file)) for work, file in trials]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", _CHILD.replace("{no_memory}", str(_NO_MEMORY))]
    command.append(json.dumps([calls, MEMORY, SECONDS, os.getpid()]))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode and not ended.stdout:
        raise RuntimeError(f"the trial of {trials[0][1]} did not begin: {ended.stderr}")
    if ended.returncode:
        late = ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        limit = f"{SECONDS} s of processor time" if late else f"{MEMORY / 2**30:g} GiB of memory"
        file = trials[int(ended.stdout.split()[-1])][1]
        raise UserError(f"{file}: a trial of it took more than {limit}; get the model from its original source")


def tokenise_sample(file: str) -> None:
    """Load a ``tokenizer.json`` and tokenise a page with it."""
    from tokenizers import Tokenizer

    Tokenizer.from_file(file).encode(_SAMPLE)
