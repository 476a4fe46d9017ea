"""Stage ``trace``: params, base model, training split → data/traces."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from stages.common.artifacts import digest_of, read_json, replacing_folder, work_folder
from stages.common.batches import read_examples
from stages.common.command import exit_code
from stages.common.models.adapter import open_model
from stages.common.models.shards import share_file
from stages.common.params import Device, Room, Trace
from stages.common.runtime import choose_runtime
from stages.trace.collect import Tracer, collect, sample_examples


class TraceRoom(Room):
    """The groups that this stage reads."""

    device: Device
    trace: Trace


def main(argv: Sequence[str] | None = None) -> None:
    """Trace deviations (and losses) of every latent space at every answer position."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.trace",
        description="One forward pass over a sample of the training split: how far is every latent space "
        "from the answer's meaning? A killed run resumes where it stopped.",
        epilog="example: python -m stages.trace --base data/base --prepared data/prepared --out data/traces",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared data's folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of Parquet shards to write")
    args = parser.parse_args(argv)
    params = TraceRoom.load()

    base, meta = read_json(args.base / "base.json"), read_json(args.prepared / "meta.json")
    runtime = choose_runtime(params.device)
    examples, with_losses = sample_examples(read_examples(args.prepared, "train"), params.trace)
    facts = {
        "schema": 1,
        "model": base["name"],
        "weights_sha256": base["weights_sha256"],
        "data_sha256": meta["splits"]["train"]["sha256"],
        "dtype": runtime.dtype_name,
        "space": params.trace.space,
        "target": params.trace.target,
        "layers": base["layers"],
        "hidden": base["hidden"],
        "vocabulary": base["vocabulary"],
        "examples": len(examples),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    fingerprint = digest_of({"facts": facts, "trace": params.trace.model_dump(), "device": runtime.device.type})
    unfinished = work_folder(args.out, fingerprint)
    model = open_model(args.base, runtime.device, runtime.dtype)
    print(f"tracing {len(examples)} examples on {runtime.device} in {runtime.dtype_name}: {runtime.reason}")
    tracer = Tracer.prepare(model, runtime, params.trace, examples, meta["shared_prefix_tokens"])
    positions = collect(tracer, examples, with_losses, facts, unfinished)
    with replacing_folder(args.out) as folder:
        for part in sorted(unfinished.glob("part-*.parquet")):
            share_file(part, folder / part.name)
    shutil.rmtree(unfinished)
    print(f"traced {positions} answer positions of {len(examples)} examples at {base['layers'] + 1} spaces")


if __name__ == "__main__":
    sys.exit(exit_code(main))
