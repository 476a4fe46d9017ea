"""Tracing shared by several processes of this machine, a shard each.

Each worker opens the model once. If one is killed (memory, a hand), the shards that are not written go to new workers.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Final

import torch

from salf.engine.batches import stream_examples
from salf.engine.progress import Advance
from salf.engine.runtime import choose_runtime, threads_each
from salf.errors import UserError
from salf.files import sealed_file
from stages.trace.collect import SPLIT, Job, Sample, Shard, Tracer, missing, trace_schema, write_shard

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def collect_with_workers(job: Job, sample: Sample, facts: dict[str, Any], folder: Path) -> None:
    """Trace a sample into parquet shards in ``folder``, as :func:`stages.trace.collect.collect` does."""
    threads = threads_each(job.params.workers)
    os.environ |= dict.fromkeys(_THREADS, str(threads))  # a worker's libraries read these when it starts
    with missing(sample, folder) as (absent, advance):
        while absent:
            left = _share_out(job, absent, facts, threads, advance)
            if len(left) == len(absent):
                raise UserError(
                    "tracing workers ended one after the other, probably because memory is short: lower trace.workers "
                    "or trace.batch_tokens"
                )
            absent = left


def _share_out(job: Job, absent: Sequence[Shard], facts: dict[str, Any], threads: int, advance: Advance) -> list[Shard]:
    """Trace shards until all are written or a worker is killed; returns those that are left."""
    workers = min(job.params.workers, len(absent))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (threads,))
    try:
        sizes = {pool.submit(_one, job, shard, facts): len(shard.rows) for shard in absent}
        for future in as_completed(sizes):
            future.result()
            advance(sizes[future], "")
    except BrokenProcessPool:
        pass
    finally:
        pool.shutdown(cancel_futures=True)
    return [shard for shard in absent if sealed_file(shard.file) is None]


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()  # type: ignore[union-attr]  # a worker has a parent
    os._exit(1)


def _one(job: Job, shard: Shard, facts: dict[str, Any]) -> None:
    tracer = _tracer(job)
    examples = list(stream_examples(job.prepared, SPLIT, shard.rows))
    write_shard(tracer, examples, shard, trace_schema(tracer.model.depth, facts), lambda _amount, _note: None)


@cache
def _tracer(job: Job) -> Tracer:
    """The worker's own, made with its first shard."""
    return job.tracer(choose_runtime(job.device))
