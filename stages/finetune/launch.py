"""Starts this stage again as several processes, under torch's elastic launcher, and ends with them."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from salf.children import end_with
from salf.errors import UserError

_PARENT: Final = "SALF_LAUNCHER"  # the launcher's process id


def launch(module: str, argv: Sequence[str], processes: int) -> None:
    """Run ``python -m module`` in several processes that know each other, and wait for them.

    One that was killed is a ``UserError``. One that failed has said why: its exit code becomes ours.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        with _environment(processes), ExitStack() as stack:
            logging.disable(logging.CRITICAL)  # not the launcher's own account: the process that failed gives its own
            stack.callback(logging.disable, logging.NOTSET)
            elastic_launch(config, sys.executable)("-m", module, *argv)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode > 0:
            raise SystemExit(failure.exitcode) from None
        name = signal.Signals(-failure.exitcode).name
        raise UserError(
            f"process {rank + 1} of {processes} was ended by {name}, the others with it; "
            "if memory ran out, lower finetune.processes or raise finetune.accumulate; run again to resume"
        ) from None
    except SignalException as told:
        if told.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        signal.signal(told.sigval, signal.SIG_DFL)  # the others are ended: now end as one that had no children
        os.kill(os.getpid(), told.sigval)


def end_with_launcher() -> None:
    """Have this process killed when its launcher is: on Linux, under our own launcher."""
    if parent := os.environ.get(_PARENT):
        end_with(int(parent))


@contextmanager
def _environment(processes: int) -> Iterator[None]:
    """Set the processes' environment variables, and restore them afterwards."""
    before = dict(os.environ)
    os.environ[_PARENT] = str(os.getpid())
    os.environ.pop("DVC_STAGE", None)  # the launcher records the run, once
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the host's name resolves to
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
