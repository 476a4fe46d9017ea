"""The benchmark: parameters, models → reports/benchmark.json."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from salf.files import code_hashes, digest_of, work_folder, write_json
from salf.ledger import Machine
from salf.settings import Device
from stages.bench.contender import Kept
from stages.bench.measure import Plan, measure, task_of
from stages.bench.prefix import measure_prefix, print_prefix
from stages.bench.processes import stage_names
from stages.bench.workloads import EMBEDDED, SHAPES
from stages.common.benchmark import Benchmark, ModelResult
from stages.common.command import exit_code
from stages.common.params import Room


class BenchRoom(Room):
    """The groups that the benchmark reads by itself; the stages that it measures take their own."""

    device: Device


def main(argv: Sequence[str] | None = None) -> None:
    """Compare this project with what people use, and write the measurements."""
    args = _arguments(argv)
    device, machine = BenchRoom.load().device, Machine.here()
    alone = args.only == "prefix"
    out = args.out or Path("reports/prefix-benchmark.json" if alone else "reports/benchmark.json")
    plan = None if alone else _quick(args) if args.quick else _full(args)
    asked = {name: str(value) for name, value in vars(args).items()}
    facts = {"device": device.model_dump(), "machine": machine.model_dump(), "code": code_hashes()}
    unfinished = work_folder(out, digest_of({"plan": repr(plan), "asked": asked, **facts}))
    if plan is None:
        task, _ = task_of((args.models or [EMBEDDED])[0], unfinished, args.batch_size, device)
        kept = Kept(unfinished / "measured.json")
        prefix = measure_prefix(task, args.examples, args.repeats or 3, kept, unfinished)
        write_json(out, prefix.model_dump(mode="json"))
        print_prefix(prefix, Console())
        print(f"benchmark: {out}")
    else:
        benchmark = measure(plan, device, unfinished)
        write_json(out, benchmark.model_dump(mode="json"))
        print_benchmark(benchmark, Console())
        print(f"benchmark: {out}; the report page shows it when it is built again: dvc repro -sf report")
    shutil.rmtree(unfinished)


def _full(args: argparse.Namespace) -> Plan:
    return Plan(
        quick=False,
        models=args.models or [EMBEDDED, "12x1024"],
        batch_size=args.batch_size,
        quarters=(0, 1, 2, 3),
        epochs=(1, 3, 5),
        repeats=args.repeats or 3,
        starts=args.repeats or 3,
        training_seconds=args.minutes * 60 * 0.38,  # each of two models; the rest goes to all else
        tracing_seconds=60,
        allocator=True,
        stages=stage_names(),
        bases=(128_000, 4096),
    )


def _quick(args: argparse.Namespace) -> Plan:
    return Plan(
        quick=True,
        models=args.models or ["6x384"],
        batch_size=args.batch_size,
        quarters=(0, 2),
        epochs=(1, 3),
        repeats=args.repeats or 2,
        starts=1,
        training_seconds=20,
        tracing_seconds=4,
        allocator=False,
        stages=("trace",),
        bases=None,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.bench",
        description="Compare fine-tuning, tracing and deciding with transformers' Trainer, PEFT and plain forward "
        "passes, in turn on this machine. A stopped benchmark resumes where it stopped.",
        epilog="example: python -m stages.bench --quick --out reports/benchmark-quick.json",
    )
    names = [EMBEDDED, *SHAPES]
    parser.add_argument("--only", choices=["prefix"], help="measure the cached prefix in a Trainer, and nothing else")
    parser.add_argument("--examples", type=int, default=240, help="of --only prefix, per epoch (default: 240)")
    parser.add_argument("--quick", action="store_true", help="the short form: a small model, fewer points")
    parser.add_argument("--models", nargs="+", choices=names, help=f"default: {EMBEDDED} 12x1024 (quick: 6x384)")
    parser.add_argument("--batch-size", type=int, default=8, help="examples per batch, for all contenders (default: 8)")
    parser.add_argument("--repeats", type=int, help="rounds (default: 3; quick: 2)")
    parser.add_argument("--minutes", type=float, default=40, help="target duration of the full form (default: 40)")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: reports/benchmark.json, or prefix-benchmark.json)"
    )
    return parser.parse_args(argv)


def print_benchmark(benchmark: Benchmark, console: Console) -> None:
    """Print tables of the fine-tunes, then the targets, where the time goes, and what was left out."""
    for model in benchmark.models:
        console.print(_points(model))
    console.print(_targets(benchmark))
    for target in benchmark.targets:
        if target.why:
            console.print(f"{target.name}: {target.why}", highlight=False)
    for note in benchmark.notes:
        console.print(note)


def _points(model: ModelResult) -> Table:
    work = model.workload
    title = f"{work.model}: {work.examples} examples of {work.mean_tokens:.0f} tokens, batches of {work.batch_size}"
    caption = "Times as fast as Trainer (full; same layers frozen; LoRA on all layers) and as our own full fine-tune."
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE)
    headings = ("above", "epochs", "seconds", "Trainer", "frozen", "LoRA", "own full", "ideal", "of it")
    for heading in headings:
        table.add_column(heading, justify="right")
    for point in model.points:
        ratios = (point.trainer_full, point.trainer_frozen, point.trainer_lora, point.speed_up)
        table.add_row(
            str(point.boundary),
            str(point.epochs),
            f"{point.seconds.median:.2f}",
            *(f"{ratio.median:.2f}" for ratio in ratios),
            f"{point.ideal:.2f}",
            f"{point.of_ideal:.0%}",
        )
    return table


def _targets(benchmark: Benchmark) -> Table:
    table = Table(title="Targets", title_justify="left", box=SIMPLE)
    for heading in ("target", "goal", "value", "worst at", "met"):
        table.add_column(heading)
    for target in benchmark.targets:
        goal, met = f"{target.sense} {target.goal:g}", "yes" if target.met else "no"
        table.add_row(target.name, goal, f"{target.value:.3g}", target.where, met)
    return table


if __name__ == "__main__":
    sys.exit(exit_code(main))
