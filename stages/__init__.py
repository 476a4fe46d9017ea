"""The rooms of the pipeline: one per DVC stage, and ``common`` for what several of them share."""

import gc
import os
import resource
import sys

import psutil

_LEAST = 1280 * 2**20
_BUSY = 50  # percent of one core

# Read by OpenMP when torch loads, so it is set before any stage can import it. By default a thread that
# waits for another spins on its core: beside any other busy process a step then takes several times as
# long, and what is measured is the neighbour. A stage that starts on an idle machine spins for a moment
# (0.2 ms, less than a time slice): training on two cores then takes a fifth less.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Nothing phones home, whoever starts a stage: a flow, make, DVC or a user. Libraries read these when they load.
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)

# torch and transformers make a million objects while they are imported, all of which stay: looking through
# them for garbage, again and again, is a tenth of a stage's start. A stage that starts (python -m has no
# name for it yet) collects none until its work begins, in stages.common.command; who imports us is left alone.
if sys.argv[:1] == ["-m"]:
    gc.disable()
    started = any(word.startswith("stages.") for word in sys.orig_argv)  # and not a flow, whose stages decide later
    if started and psutil.cpu_percent(0.1) * (os.cpu_count() or 1) < _BUSY:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Below this some library does not load, and says anything but that.
    if 0 <= (most := resource.getrlimit(resource.RLIMIT_AS)[0]) < _LEAST:
        print(f"error: address space is limited to {most >> 20} MiB (ulimit -v): allow {_LEAST >> 20}", file=sys.stderr)
        sys.exit(2)
