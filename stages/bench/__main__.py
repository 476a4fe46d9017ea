"""The benchmark: parameters, models → reports/benchmark.json."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from salf.files import WORK_FOLDER, write_json
from salf.settings import Device
from stages.bench.answer_side import measure_answer_side
from stages.bench.measure import measure, task_of
from stages.bench.prefix import measure_prefix
from stages.bench.rounds import Plan
from stages.bench.workloads import EMBEDDED, SHAPES
from stages.common.benchmark import AnswerSideBenchmark, Benchmark, PrefixBenchmark, Record, Spread
from stages.common.command import exit_code
from stages.common.params import Room

# What is measured alone: how, and on how many examples.
_PARTS: Final[dict[str, tuple[Any, int]]] = {"prefix": (measure_prefix, 240), "answer-side": (measure_answer_side, 48)}
_QUICK: Final = Plan(
    models=("6x384",),
    quarters=(0, 2),
    epochs=(1, 3),
    repeats=2,
    training_seconds=20,
    tracing_seconds=4,
    quick=True,
)


class BenchRoom(Room):
    """The groups that the benchmark reads by itself; the stages that it measures take their own."""

    device: Device


def main(argv: Sequence[str] | None = None) -> None:
    """Compare this project with what people use, and write the measurements."""
    args = _arguments(argv)
    device = BenchRoom.load().device
    out = args.out or Path("reports", f"{args.only}-benchmark.json" if args.only else "benchmark.json")
    (room := out.parent / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=room) as name:
        folder = Path(name).absolute()
        if args.only:
            task, _ = task_of((args.models or [EMBEDDED])[0], folder, args.batch_size, device)
            measure_part, examples = _PARTS[args.only]
            found = measure_part(task, args.examples or examples, args.repeats or 3, folder)
        else:
            given = {name: getattr(args, name) for name in ("models", "batch_size", "repeats") if getattr(args, name)}
            found = measure(replace(_QUICK if args.quick else Plan(), **given), device, folder)
    write_json(out, found.model_dump(mode="json"))
    for record in _records(found):
        print(", ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in record))
    print(f"benchmark: {out}" + ("" if args.only else "; to show it on the report page: dvc repro -sf report"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.bench",
        description="Compare fine-tuning, tracing and deciding with transformers' Trainer, PEFT and plain forward "
        "passes, in turn on this machine.",
        epilog="example: python -m stages.bench --quick --out reports/benchmark-quick.json",
    )
    names = [EMBEDDED, *SHAPES]
    parser.add_argument(
        "--only",
        choices=_PARTS,
        help="measure the cached prefix, or answer-side tuning, in a Trainer, and nothing else",
    )
    counts = ", ".join(f"{name} {examples}" for name, (_, examples) in _PARTS.items())
    parser.add_argument("--examples", type=int, help=f"of --only, per epoch (default: {counts})")
    parser.add_argument("--quick", action="store_true", help="the short form: a small model, fewer points")
    parser.add_argument("--models", nargs="+", choices=names, help=f"default: {EMBEDDED} 12x1024 (quick: 6x384)")
    parser.add_argument("--batch-size", type=int, default=8, help="examples per batch, for all contenders (default: 8)")
    parser.add_argument("--repeats", type=int, help="rounds (default: 3; quick: 2)")
    parser.add_argument(
        "--out",
        type=Path,
        help="file to write (default: reports/benchmark.json, with --only reports/<part>-benchmark.json)",
    )
    return parser.parse_args(argv)


def _records(found: Benchmark | PrefixBenchmark | AnswerSideBenchmark) -> Iterator[Record]:
    """Everything that was measured."""
    if not isinstance(found, Benchmark):
        yield from found.points
        return
    for model in found.models:
        yield from (model.workload, *model.points, *model.answer_side, *model.memory, *model.tracing)
    if found.deciding:
        yield found.deciding


def _shown(value: object) -> str:
    """A measured value; of several rounds the median with the lowest and the highest."""
    if isinstance(value, Spread):
        return f"{value.median:.3g} ({value.low:.3g}–{value.high:.3g})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(exit_code(main))
