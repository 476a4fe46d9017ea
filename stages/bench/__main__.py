"""The benchmark: parameters, models → reports/benchmark.json."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from salf.files import code_hashes, digest_of, work_folder, write_json
from salf.ledger import Machine
from salf.settings import Device
from stages.bench.answer_side import measure_answer_side
from stages.bench.contender import Kept
from stages.bench.measure import measure, task_of
from stages.bench.prefix import measure_prefix
from stages.bench.processes import stage_names
from stages.bench.rounds import Plan
from stages.bench.workloads import EMBEDDED, SHAPES
from stages.common.benchmark import Benchmark, Record, Spread
from stages.common.command import exit_code
from stages.common.params import Room

# What is measured alone: how, and on how many examples.
_PARTS: Final[dict[str, tuple[Any, int]]] = {"prefix": (measure_prefix, 240), "answer-side": (measure_answer_side, 48)}
_QUICK: Final = Plan(
    models=("6x384",),
    quarters=(0, 2),
    epochs=(1, 3),
    repeats=2,
    starts=1,
    training_seconds=20,
    tracing_seconds=4,
    stages=("trace",),
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
    plan = None if args.only else _plan(args)
    asked = {name: str(value) for name, value in vars(args).items()}
    facts = {"device": device.model_dump(), "machine": Machine.here().model_dump(), "code": code_hashes()}
    unfinished = work_folder(out, digest_of({"plan": repr(plan), "asked": asked, **facts}))
    if plan is None:
        task, _ = task_of((args.models or [EMBEDDED])[0], unfinished, args.batch_size, device)
        kept = Kept(unfinished / "measured.json")
        measure_part, examples = _PARTS[args.only]
        part = measure_part(task, args.examples or examples, args.repeats or 3, kept, unfinished)
        write_json(out, part.model_dump(mode="json"))
        _print_points(part.points)
        print(f"benchmark: {out}")
    else:
        benchmark = measure(plan, device, unfinished)
        write_json(out, benchmark.model_dump(mode="json"))
        _print_targets(benchmark)
        print(f"benchmark: {out}; the report page shows it when it is built again: dvc repro -sf report")
    shutil.rmtree(unfinished)


def _plan(args: argparse.Namespace) -> Plan:
    given = {name: getattr(args, name) for name in ("models", "batch_size", "repeats") if getattr(args, name)}
    if args.quick:
        return replace(_QUICK, **given)
    return replace(Plan(stages=stage_names()), **given, starts=args.repeats or Plan.starts)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.bench",
        description="Compare fine-tuning, tracing and deciding with transformers' Trainer, PEFT and plain forward "
        "passes, in turn on this machine. A stopped benchmark resumes where it stopped.",
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


def _print_points(points: Sequence[Record]) -> None:
    """Every number with its name; of several rounds the median with the lowest and the highest."""
    for point in points:
        facts = [
            f"{name} {one.median:.3g} ({one.low:.3g}–{one.high:.3g})" if isinstance(one, Spread) else f"{name} {one}"
            for name, one in point
        ]
        print(", ".join(facts).replace("_", " "))


def _print_targets(benchmark: Benchmark) -> None:
    for target in benchmark.targets:
        missed = "" if target.met else f": missed. {target.why}"
        print(f"{target.name}: {target.value:.3g} at {target.where} ({target.sense} {target.goal:g}){missed}")
    for note in benchmark.notes:
        print(note)


if __name__ == "__main__":
    sys.exit(exit_code(main))
