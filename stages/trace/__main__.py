"""Stage ``trace``: params, base model, training split → data/traces."""

import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from salf.engine.batches import stream_examples
from salf.engine.models.adapter import open_model
from salf.engine.models.shards import share_file
from salf.engine.runtime import choose_runtime
from salf.errors import UserError
from salf.evidence import TraceFacts
from salf.files import code_hashes, digest_of, replacing_folder, sealed_file, sha256_file, work_folder
from salf.records import BaseRecord, PreparedRecord
from salf.settings import TASKS, Device
from stages.common.command import BASE, PREPARED, exit_code, parser_of
from stages.common.params import Room, Trace
from stages.trace.collect import SPLIT, Tracer, collect, draw_sample, shards

_PARSER: Final = parser_of(
    "trace",
    "Trace a sample of the training split: the deviation and loss of every latent space at every answer position. "
    "A killed run resumes where it stopped.",
    {"base": BASE, "prepared": PREPARED, "out": ("data/traces", "the folder of Parquet shards to write")},
)


class TraceRoom(Room):
    """The parameters that this stage reads."""

    device: Device
    trace: Trace


def main(argv: Sequence[str] | None = None) -> None:
    """Trace deviations (and losses) of every latent space at every answer position."""
    args = _PARSER.parse_args(argv)
    params = TraceRoom.load()

    base, meta = BaseRecord.load(args.base), PreparedRecord.load(args.prepared)
    runtime, trace = choose_runtime(params.device), params.trace
    if not TASKS[meta.task].text:
        trace = trace.model_copy(update={"positions": None})
    sample = draw_sample(args.prepared, trace)
    facts = TraceFacts(
        schema=1,
        model=base.name,
        data_sha256=meta.splits[SPLIT].sha256,
        dtype=runtime.dtype_name,
        examples=len(sample.rows),
        versions={name: version(name) for name in ("torch", "transformers")},
        **base.model_dump(include={"weights_sha256", "layers", "hidden", "vocabulary"}),
        **trace.model_dump(include={"basis", "space", "target"}),
    ).model_dump(mode="json", by_alias=True)
    inputs = {
        "facts": facts,
        "config": sha256_file(args.base / "config.json"),
        "trace": trace.model_dump(),
        "device": runtime.device.type,
        "frozen_weights": runtime.frozen_weights,
        "code": code_hashes(),
    }
    unfinished = work_folder(args.out, digest_of(inputs))
    print(f"tracing {len(sample.rows)} examples on {runtime.device} in {runtime.dtype_name}: {runtime.reason}")
    prefix = next(stream_examples(args.prepared, SPLIT)).prompt_ids[: meta.shared_prefix_tokens]
    model = open_model(args.base, runtime.device, runtime.dtype, frozen=runtime.frozen())
    tracer = Tracer.prepare(model, runtime, trace, sample.tokens, prefix)
    collect(tracer, args.prepared, sample, facts, unfinished)
    with replacing_folder(args.out) as folder:
        for shard in shards(sample, unfinished):
            if (part := sealed_file(shard.file)) is None:
                raise UserError(f"{shard.file}: damaged since it was written; run again")
            share_file(part, folder / shard.file.name)
    shutil.rmtree(unfinished)
    print(f"traced {sample.positions} answer positions of {len(sample.rows)} examples at {base.layers + 1} spaces")


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
