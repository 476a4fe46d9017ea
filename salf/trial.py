"""A trial of a model folder's tokenizer or chat template in a child process with limits on time and memory.

Both are programs of whoever made the folder: a template can loop for ever, a tokenizer can grow a word to gigabytes.
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

MEMORY: Final = 2 << 30  # bytes
SECONDS: Final = 30  # of processor time, and 10 times what the child took to start: machines differ 25-fold
_SAMPLE: Final = f"{string.printable} The quick brown fox jumps over the lazy dog. Größe, 大小, размер, 🙂. " * 20
_NO_MEMORY: Final = 3  # exit code
_CHILD: Final = """
import importlib, json, math, resource, sys, time
module, name, argument, memory, seconds = json.loads(sys.argv[1])
work = getattr(importlib.import_module(module), name)
allowed = math.ceil(seconds + 10 * time.process_time())
for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, allowed), (resource.RLIMIT_AS, memory)):
    try:
        resource.setrlimit(kind, (most, most + (kind == resource.RLIMIT_CPU)))
    except (ValueError, OSError):
        pass  # a stricter limit holds already, or the system has none
try:
    work(argument)
except BaseException as error:  # the caller meets any other fault itself
    while error is not None:
        if isinstance(error, MemoryError):
            sys.exit({no_memory})
        error = error.__context__
"""


def try_out(work: Callable[[str], object], argument: Path, file: Path) -> None:
    """Call a module's function in a child process; a ``UserError`` blames ``file`` if it exceeds the limits."""
    call = json.dumps([work.__module__, work.__qualname__, str(argument), MEMORY, SECONDS])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    script = _CHILD.replace("{no_memory}", str(_NO_MEMORY))
    ended = subprocess.run([sys.executable, "-c", script, call], env=environment, capture_output=True, text=True)
    if ended.returncode == 1:
        raise RuntimeError(f"the trial of {file} did not begin: {ended.stderr}")
    if ended.returncode:
        late = ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
        limit = f"{SECONDS} s of processor time" if late else f"{MEMORY >> 30} GiB of memory"
        raise UserError(f"{file}: a trial with a short text took more than {limit}; take the model from its maker")


def tokenise_sample(file: str) -> None:
    """Load a ``tokenizer.json`` and tokenise a page with it."""
    from tokenizers import Tokenizer

    Tokenizer.from_file(file).encode(_SAMPLE)
