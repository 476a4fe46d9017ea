"""The benchmark: parameters, models → reports/benchmark.json."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pydantic_core import to_jsonable_python

from salf.files import WORK_FOLDER, write_json
from salf.settings import Device
from stages.bench.answer_side import AnswerSideTrainer
from stages.bench.cached import CachedTrainer, PrefixTrainer, measure_cached
from stages.bench.measure import measure, task_of
from stages.bench.rounds import Plan
from stages.bench.workloads import EMBEDDED, SHAPES
from stages.common.command import exit_code
from stages.common.params import Room

_PARTS: Final[dict[str, type[CachedTrainer]]] = {"prefix": PrefixTrainer, "answer-side": AnswerSideTrainer}
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
            task = task_of((args.models or [EMBEDDED])[0], folder, args.batch_size, device)
            found = measure_cached(_PARTS[args.only], task, args.examples, args.repeats or 3, folder)
        else:
            given = {name: getattr(args, name) for name in ("models", "batch_size", "repeats") if getattr(args, name)}
            found = measure(replace(_QUICK if args.quick else Plan(), **given), device, folder)
    write_json(out, to_jsonable_python(found))
    for part in found.get("models", [found]):
        print(_line(part["workload"]))
        for speed in (*part["speeds"], *part.get("tracing", [])):
            print(f"  {_line(vars(speed))}")
    print(f"benchmark: {out}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.bench",
        description="Compare fine-tuning and tracing with transformers' Trainer, PEFT and plain forward passes, in "
        "turn on this machine.",
        epilog="example: python -m stages.bench --quick --out reports/benchmark-quick.json",
    )
    names = [EMBEDDED, *SHAPES]
    parser.add_argument(
        "--only",
        choices=_PARTS,
        help="measure the cached prefix, or answer-side tuning, in a Trainer, and nothing else",
    )
    counts = ", ".join(f"{name} {part.examples}" for name, part in _PARTS.items())
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


def _line(measured: Mapping[str, Any]) -> str:
    """Every value with its name, those within one another too."""
    words = []
    for name, value in measured.items():
        if isinstance(value, dict):
            value = f"({_line(value)})" if value else None
        elif isinstance(value, float):
            value = f"{value:.3g}"
        if value is not None:
            words.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
