"""A trial of a model folder's tokenizer and chat template in a child process with limits on time and memory.

Both are programs of whoever made the folder: a template can loop for ever, a tokenizer can grow a word to gigabytes.
"""

import math
import multiprocessing
import os
import resource
import signal
import string
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from salf.errors import UserError
from stages.prepare.chat import ChatTemplate
from stages.prepare.tokens import PromptTokenizer

_SAMPLE: Final = f"{string.printable} The quick brown fox jumps over the lazy dog. Größe, 大小, размер, 🙂. " * 20
_MEMORY: Final = 2 << 30  # bytes
_SECONDS: Final = 5  # of processor time, and 10 times what the child took to start: machines differ 25-fold
_WALL: Final = 1800  # seconds: for what takes no processor time


def try_out(folder: Path, *, chat: bool) -> None:
    """Load the tokenizer and tokenise a page with it; with ``chat``, render a short conversation, too.

    Raises:
        UserError: one of them cannot be used, or does not end within the limits.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(theirs, folder, chat, _SECONDS), daemon=True)
    child.start()
    theirs.close()
    file: Path | None = None
    fault = ""
    with suppress(EOFError):
        while ours.poll(_WALL):
            file, fault = ours.recv()
        child.kill()
    child.join()
    if fault:
        raise UserError(fault)
    if child.exitcode:
        if file is None:
            raise RuntimeError(f"the trial of {folder} did not begin: exit code {child.exitcode}")
        late = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        limit = f"{_SECONDS} s of processor time" if late else f"{_MEMORY >> 30} GiB of memory"
        raise UserError(f"{file}: a trial with a short text took more than {limit}: take the model from its maker")


def _work(pipe: Connection, folder: Path, chat: bool, seconds: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library that aborts says so there
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    allowed = math.ceil(seconds + 10 * time.process_time())
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, allowed), (resource.RLIMIT_AS, _MEMORY)):
        with suppress(ValueError, OSError):  # a stricter limit holds already, or the system has none
            resource.setrlimit(kind, (most, most + 1 if kind == resource.RLIMIT_CPU else most))
    file = folder / "tokenizer.json"
    try:
        pipe.send((file, ""))
        tokenizer = PromptTokenizer(folder)
        tokenizer.prompts([_SAMPLE])
        if chat:
            file = ChatTemplate.file(folder)
            pipe.send((file, ""))
            ChatTemplate.of(folder)
    except (UserError, MemoryError) as error:
        if _is_lack_of_memory(error):
            sys.exit(1)
        pipe.send((file, str(error)))


def _is_lack_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, MemoryError) or (error is not None and _is_lack_of_memory(error.__context__))
