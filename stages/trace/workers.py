"""Tracing shared by several processes of this machine: Prefect tasks, a shard each, on Dask's workers.

Each worker opens the model once. A worker that is killed (memory, a hand) is started again by Dask and its shard is
traced again; shards that were written stay.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import dask
import torch
from distributed.scheduler import KilledWorker
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_dask.task_runners import DaskTaskRunner

from salf.engine.batches import stream_examples
from salf.engine.progress import Advance
from salf.engine.runtime import choose_runtime, threads_each
from salf.errors import UserError
from stages.trace.collect import SPLIT, Job, Sample, Shard, Tracer, missing, trace_schema, write_shard

_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def collect_with_workers(job: Job, sample: Sample, facts: dict[str, Any], folder: Path) -> None:
    """Trace a sample into parquet shards in ``folder``, as :func:`stages.trace.collect.collect` does."""
    with missing(sample, folder) as (absent, advance):
        if not absent:
            return
        threads = str(threads_each(job.params.workers))
        environment = dict.fromkeys(_THREADS, threads)
        scratch = folder / "workers"  # by default Dask would take a folder outside the project
        # A worker's libraries read these when it starts; Dask sets them to 1 unless told otherwise.
        with dask.config.set({"distributed.nanny.pre-spawn-environ": environment, "temporary-directory": str(scratch)}):
            cluster = {
                "n_workers": min(job.params.workers, len(absent)),
                "threads_per_worker": 1,
                "dashboard_address": None,
                "local_directory": str(scratch),
            }
            _run(job, absent, facts, advance, DaskTaskRunner(cluster_kwargs=cluster))


def _run(job: Job, absent: Sequence[Shard], facts: dict[str, Any], advance: Advance, runner: Any) -> None:
    # Without parameters: Prefect would record them, rows and all.
    @flow(name="salf-trace", task_runner=runner)
    def share_out() -> None:
        sizes = {_one.submit(job, shard, facts): len(shard.rows) for shard in absent}
        for future in as_completed(list(sizes)):
            future.result()
            advance(sizes[future], "")

    try:
        with _one_server():
            share_out()
    except KilledWorker:
        raise UserError(
            "tracing workers ended one after the other, probably because memory is short: lower trace.workers or "
            "trace.batch_tokens"
        ) from None


@contextmanager
def _one_server() -> Iterator[None]:
    """A server for flow and workers alike: otherwise each worker would start its own."""
    if PREFECT_API_URL.value():
        yield
        return
    server = SubprocessASGIServer()
    server.start()  # it stops with this process, by an exit hook of its own, once Prefect has sent what it holds
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield


@task(name="trace a shard", cache_policy=NO_CACHE, persist_result=False)
def _one(job: Job, shard: Shard, facts: dict[str, Any]) -> None:
    tracer = _tracer(job)
    examples = list(stream_examples(job.prepared, SPLIT, shard.rows))
    write_shard(tracer, examples, shard, trace_schema(tracer.model.depth, facts), lambda _amount, _note: None)


@cache
def _tracer(job: Job) -> Tracer:
    """The worker's own, made with its first shard."""
    torch.set_num_threads(int(os.environ[_THREADS[0]]))
    return job.tracer(choose_runtime(job.device))
