"""Faults that the user can mend, and the exit codes of commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from salf.memory import shortage

BAD_INPUT: Final = 2
INTERRUPTED: Final = 130


class UserError(Exception):
    """Something that the user can mend; its text says what is wrong, where, and what to do."""


@contextmanager
def reading(file: Path | str, fault: str = "cannot be read") -> Iterator[None]:
    """Turn whatever another library raises about a user's file into a ``UserError``: file, fault, library's reason."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a parser written in Rust panics with what is no Exception
        if shortage(error):
            raise
        reason = " ".join(str(error).split())[:300]
        kind = "" if isinstance(error, OSError | ValueError | ImportError) and reason else f"{type(error).__name__}: "
        raise UserError(f"{file}: {fault}: {kind}{reason}") from None
