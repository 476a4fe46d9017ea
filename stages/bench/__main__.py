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
from stages.bench.rounds import CONTENDERS, Plan, measure
from stages.bench.workloads import OWN, SHAPES
from stages.common.command import exit_code
from stages.common.params import load_params

_QUICK: Final = Plan(
    models=("6x384",),
    quarters=(0, 2),
    epochs=(1, 3),
    repeats=2,
    training_seconds=20,
    tracing_seconds=4,
    quick=True,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare this project with what people use, and write the measurements."""
    args = _arguments(argv)
    (room := args.out.parent / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(args).items() if value and name not in ("quick", "out")}
    with TemporaryDirectory(dir=room) as name:
        plan = replace(_QUICK if args.quick else Plan(), **asked)
        found = to_jsonable_python(measure(plan, load_params().device, Path(name).absolute()))
    write_json(args.out, found)
    for part in found["models"]:
        print(_line(part["workload"]))
        for speed in (*part["speeds"], *part["tracing"]):
            print(f"  {_line(speed)}")
    print(f"benchmark: {args.out}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.bench",
        description="Compare fine-tuning and tracing with transformers' Trainer, PEFT and plain forward passes, in "
        "turn on this machine.",
        epilog="example: python -m stages.bench --quick --out reports/benchmark-quick.json",
    )
    names = [OWN, *SHAPES]
    parser.add_argument("--quick", action="store_true", help="the short form: a small model, fewer points")
    parser.add_argument("--models", nargs="+", choices=names, help=f"default: {OWN} 12x1024 (quick: 6x384)")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), help="default: all; trainer is always one")
    parser.add_argument("--batch-size", type=int, default=8, help="examples per batch, for all contenders (default: 8)")
    parser.add_argument("--repeats", type=int, help="rounds (default: 3; quick: 2)")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmark.json"), help="file to write")
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
