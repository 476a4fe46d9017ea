"""From a command line to a stage's work, and from a fault to one clear line.

Exit codes: 0 done; 2 something that the user can mend (one ``error:`` line, no traceback);
130 interrupted; anything else is a bug of ours and keeps its traceback.
"""

import argparse
import contextlib
import errno
import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Sequence
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Final

from salf.children import end_with_caller
from salf.errors import BAD_INPUT, INTERRUPTED, UserError
from salf.memory import advice, shortage
from salf.methods import method_of
from salf.plan import FreezePlan
from salf.records import read_sizes
from salf.scale.inputs import GIB, configuration
from salf.scale.prediction import PRECISIONS, memory
from salf.workload import cost_model
from stages.common import run_record
from stages.common.params import Params, load_params

Stage = Callable[[Sequence[str] | None], None]  # a stage's ``main``
Place = tuple[str, str]  # of an option: where the pipeline has it, and the help
BASE: Final[Place] = ("data/base", "the base model's folder")
PREPARED: Final[Place] = ("data/prepared", "the prepared data's folder")

_NO_RIGHT: Final = "make it writable"
_DISK_FAULTS: Final = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space or raise your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: _NO_RIGHT,
    errno.EACCES: _NO_RIGHT,
    errno.EPERM: _NO_RIGHT,
}


def parser_of(
    stage: str, description: str, places: dict[str, Place], optional: Collection[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser for ``python -m stages.<stage>`` with one path per option; the help ends with an example."""
    words = "".join(f" --{name} {place}" for name, (place, _) in places.items())
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage}",
        description=description,
        epilog=f"example: python -m stages.{stage}{words}",
        formatter_class=argparse.RawDescriptionHelpFormatter if "\n" in description else argparse.HelpFormatter,
    )
    for name, (_, text) in places.items():
        parser.add_argument(f"--{name}", type=Path, required=name not in optional, help=text)
    return parser


def exit_code(stage: Stage, argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """Run a stage's ``main`` as DVC's record has it; a fault of the user's becomes one line and exit code 2.

    What ``parser`` refuses, or answers itself (``--help``), ends the process here and is no run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" must not end finished work
    if parser is not None:
        parser.parse_args(argv)
    # Other libraries' remarks: on their own next version, on kernels that are not there; loading reports are read.
    warnings.simplefilter("ignore", FutureWarning)
    for library in ("bitsandbytes", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if not gc.isenabled():  # see stages/__init__.py
        gc.freeze()  # what was imported stays: no collection looks at it again
        gc.enable()
    if "DVC_STAGE" in os.environ:
        end_with_caller()  # a DVC that is killed takes its stage along
    try:
        run = run_record.begin(argv)
    except OSError as error:
        return _report(
            f"cannot record this run in {error.filename or 'the ledger'}: {os.strerror(error.errno or 0)}", BAD_INPUT
        )
    status = 1
    try:
        status = _status(stage, argv)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        raise
    finally:
        run_record.finish(run, status)
    return status


def _status(stage: Stage, argv: Sequence[str] | None) -> int:
    try:
        stage(argv)
    except UserError as error:
        return _report(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _report("interrupted; run again to resume", INTERRUPTED)
    except Exception as error:
        line = _memory_fault(error, stage, sys.argv[1:] if argv is None else argv) or _disk_fault(error)
        if line is None:
            raise
        return _report(line, BAD_INPUT)
    return 0


def _disk_fault(error: Exception) -> str | None:
    if not isinstance(error, OSError) or (mend := _DISK_FAULTS.get(error.errno or 0)) is None:
        return None
    where, reason = f" ({error.filename})" if error.filename else "", os.strerror(error.errno or 0)
    return f"cannot write{where}: {reason}; nothing finished was touched: {mend} and run again"


def _memory_fault(error: Exception, stage: Stage, argv: Sequence[str]) -> str | None:
    """Return the line for a stage that ran out of memory; ``None``: ``error`` is of another kind."""
    what = shortage(error)
    if what is None:
        return None
    traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
    sys.unraisablehook = lambda _fault: None  # libraries need memory to end, too
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    wanted = f" when {asked[1]} more were asked for" if asked else ""
    params, estimate = None, ""
    with contextlib.suppress(Exception):  # an explanation must hide no fault
        params = load_params()
        estimate = _estimate(dict(pairwise(argv)), params, on_gpu=what == "GPU memory")
    spec = getattr(sys.modules.get(stage.__module__), "__spec__", None)  # of stages.NAME.__main__, also as a program
    name = spec.name.removesuffix(".__main__").rpartition(".")[2] if spec else ""
    return f"out of {what}{wanted}: {advice(name, params)}{estimate}; nothing finished was touched"


def _estimate(options: dict[str, str], params: Params, on_gpu: bool) -> str:
    """The planner's figure for a fine-tune with its present settings; empty for other stages."""
    if "--plan" not in options:
        return ""
    method, settings = options.get("--method", ""), params.finetune
    if "--variant" in options:
        variant = params.compare.variant(options["--variant"])
        method, settings = variant.method, variant.settings(settings)
    scope = method_of(method)
    boundary = scope.boundary
    if boundary is None:
        boundary = FreezePlan.load(options["--plan"]).boundary_of(scope.scope)
    shape, parts = configuration(options["--base"]).shape, settings.accumulate * settings.processes
    sizes = read_sizes(Path(options["--prepared"]))
    work = cost_model(sizes, settings.epochs, settings.batch_size, parts=parts, packed=shape.packed)
    precision = PRECISIONS["mixed" if on_gpu and params.device.dtype != "float32" else "float32"]
    need = settings.processes * memory(shape, work, boundary, precision, technique=scope.technique(settings)).peak
    return f"; estimated need above boundary {boundary}: {need / GIB:.3g} GiB, without what libraries take"


def _report(message: str, code: int) -> int:
    for line in message.splitlines():
        shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
        print(f"error: {shown}", file=sys.stderr)
    return code
