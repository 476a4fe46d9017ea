"""From faults to exit codes and one clear line."""

import errno
import os
import subprocess
import sys

import pytest

from salf.errors import BAD_INPUT, INTERRUPTED, UserError
from stages.common.command import exit_code


def raising(error):
    def stage(_argv):
        raise error

    return stage


def test_success_is_zero():
    assert exit_code(lambda _argv: None) == 0


def test_a_users_fault_is_one_line_and_no_traceback(capsys):
    assert exit_code(raising(UserError("data.csv: line 3: no label"))) == BAD_INPUT
    assert capsys.readouterr().err == "error: data.csv: line 3: no label\n"


@pytest.mark.parametrize(
    ("number", "reason", "mend"),
    [
        (errno.ENOSPC, "No space left on device", "free space"),
        (errno.EDQUOT, "Disk quota exceeded", "free space or raise your quota"),
        (errno.EFBIG, "File too large", "raise the limit on the size of files (ulimit -f)"),
        (errno.EROFS, "Read-only file system", "make it writable"),
        (errno.EACCES, "Permission denied", "make it writable"),
        (errno.EPERM, "Operation not permitted", "make it writable"),
    ],
)
def test_a_disk_that_takes_nothing_is_the_users_to_mend(capsys, number, reason, mend):
    assert exit_code(raising(OSError(number, reason, "out.parquet"))) == BAD_INPUT
    said = f"error: cannot write (out.parquet): {reason}; nothing finished was touched: {mend} and run again\n"
    assert capsys.readouterr().err == said


def test_an_interrupt_is_told_apart(capsys):
    assert exit_code(raising(KeyboardInterrupt())) == INTERRUPTED
    assert "run again" in capsys.readouterr().err


@pytest.mark.parametrize("bug", [ZeroDivisionError("x"), OSError(errno.ECONNRESET, "reset")])
def test_a_bug_of_ours_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        exit_code(raising(bug))


def test_a_terminal_of_few_characters_ends_no_finished_work():
    program = "from stages.common.command import exit_code; exit(exit_code(lambda _: print('R\\u00b2 \\u00b1 0.1')))"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "R? ? 0.1\n", "")
