"""One line for a stage that memory is too small for: what ran out, which settings need less, what was estimated."""

import contextlib
import re
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from salf.memory import advice, shortage
from salf.methods import method_of
from salf.plan import FreezePlan
from salf.records import read_sizes
from salf.scale.inputs import GIB, configuration
from salf.scale.prediction import PRECISIONS, memory
from salf.workload import cost_model
from stages.common.params import Params, load_params


def memory_fault(error: Exception, stage: str, argv: Sequence[str]) -> str | None:
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
    return f"out of {what}{wanted}: {advice(stage, params)}{estimate}; nothing finished was touched"


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
    need = settings.processes * memory(shape, work, boundary, precision).peak
    return f"; estimated need above boundary {boundary}: {need / GIB:.3g} GiB, without what libraries take"
