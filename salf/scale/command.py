"""``salf scale``: configurations and a workload → a table, and JSON on demand."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from salf.errors import UserError
from salf.files import write_json
from salf.plan_records import Spent
from salf.records import PreparedSizes, SplitSize, read_sizes
from salf.scale import inputs
from salf.scale.inputs import GIB, Machine
from salf.scale.prediction import PRECISIONS, Cost, Prediction, predict
from salf.settings import AnswerSide
from salf.workload import cost_model

_UNITS: Final = (("days", 86_400), ("h", 3600), ("min", 60))
_WIDE: Final = 105  # columns of a terminal that holds the table's rows in one line
DESCRIPTION: Final = (
    "Estimate FLOPs, time and memory of fine-tuning above each boundary, from a model's configuration alone: "
    "no weights, no GPU. The assumptions are printed with the numbers."
)


def run(args: argparse.Namespace) -> None:
    """Print what each boundary would cost models of the given configurations."""
    machine, sizes = _machine(args), _sizes(args)
    predictions = []
    for model in map(inputs.configuration, args.config):
        options = {"parts": args.passes, "packed": model.shape.packed, "lora_rank": args.lora_rank}
        answers = AnswerSide(extra=args.answer_extra)
        work = cost_model(sizes, args.epochs, args.batch_rows, **options, answer_side=answers)
        predictions.append(predict(model, work, machine, PRECISIONS[args.precision]))
    for prediction in predictions:
        print_prediction(prediction, Console())
    if args.json:
        write_json(args.json, {"schema": 1, "predictions": [prediction.as_json() for prediction in predictions]})


def _machine(args: argparse.Namespace) -> Machine:
    if args.teraflops:
        return Machine("the machine", args.teraflops * 1e12, None, f"{args.teraflops:g} TFLOP/s, as given")
    return inputs.device(args.device, args.utilisation)


def _sizes(args: argparse.Namespace) -> PreparedSizes:
    if args.prepared:
        return read_sizes(args.prepared)
    if (least := args.shared_tokens + args.answer_tokens) > args.tokens:
        raise UserError(f"--tokens {args.tokens}: fewer than the example's shared prefix and answer ({least})")
    tokens, answers = args.rows * args.tokens, args.rows * args.answer_tokens
    train = SplitSize(rows=args.rows, tokens=tokens, answer_tokens=answers, field_tokens=tokens - answers)
    return PreparedSizes(splits={"train": train}, shared_prefix_tokens=args.shared_tokens)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its arguments."""
    known = ", ".join(inputs.published())
    parser.add_argument("--config", nargs="+", required=True, help=f"a config.json, its folder, or one of: {known}")
    work = parser.add_argument_group("workload")
    count = _above(0, int)
    work.add_argument("--rows", type=count, default=10_000, help="training examples (default: 10000)")
    work.add_argument("--tokens", type=count, default=512, help="tokens of an example, answer included (default: 512)")
    work.add_argument("--answer-tokens", type=count, default=128, help="tokens of its answer (default: 128)")
    work.add_argument("--shared-tokens", type=_above(-1, int), default=0, help="tokens of the shared prefix")
    work.add_argument("--prepared", type=Path, help="prepared data that replaces these four values, e.g. data/prepared")
    work.add_argument("--epochs", type=count, default=3, help="default: 3")
    work.add_argument("--batch-rows", type=count, default=16, help="examples per optimizer step (default: 16)")
    work.add_argument("--passes", type=count, default=1, help="parts in which a batch is computed (default: 1)")
    work.add_argument("--lora-rank", type=count, default=8, help="rank of the adapters (default: 8)")
    extra = "prompt tokens on the trained side of +answer, in addition to the one before the answer (default: 0)"
    work.add_argument("--answer-extra", type=_above(-1, int), default=0, help=extra)
    where = parser.add_argument_group("machine")
    where.add_argument("--precision", choices=PRECISIONS, default="mixed", help="default: mixed")
    where.add_argument("--device", choices=inputs.DEVICES, default="h100", help="default: h100")
    usual = inputs.UTILISATION
    where.add_argument("--utilisation", type=_above(0, float), default=usual, help=f"of the peak (default: {usual})")
    where.add_argument("--teraflops", type=_above(0, float), help="replaces both: training throughput in 1e12 FLOP/s")
    parser.add_argument("--json", type=Path, help="also write everything to this file")


def _above(least: int, kind: Callable[[str], float]) -> Callable[[str], float]:

    def number(text: str) -> float:
        value = kind(text)
        if value <= least:
            raise argparse.ArgumentTypeError(f"{text} is not above {least}")
        return value

    return number


def print_prediction(prediction: Prediction, console: Console) -> None:
    """Print a row per boundary, the same for answers alone, and below what was assumed."""
    model, machine = prediction.model, prediction.machine
    title = f"{model.name} ({model.origin}): {model.shape.parameters:,} parameters, {model.shape.layers} layers"
    rows = [
        _row(one.boundary, one, machine, LoRA=_shares(one.lora) if one.lora else "") for one in prediction.boundaries
    ]
    _print_table(f"{title}, one {machine.name}", rows, console)
    if answers := [_row(one.boundary, one.answer, machine) for one in prediction.boundaries if one.answer]:
        _print_table("Weights that act on answers alone (+answer)", answers, console)
    for line in prediction.assumptions:
        console.print(f"- {line}", highlight=False, markup=False, soft_wrap=True)


def _print_table(title: str, rows: Sequence[Mapping[str, str]], console: Console) -> None:
    table = Table(title=title, box=SIMPLE, collapse_padding=True, pad_edge=False, show_edge=False)
    for heading in rows[0]:
        longest = max(len(word) for text in (heading, *(row[heading] for row in rows)) for word in text.split())
        # A narrow terminal breaks lines, but no words.
        table.add_column(heading, justify="right", max_width=longest if console.width < _WIDE else None)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def _row(boundary: int, cost: Cost, machine: Machine, **more: str) -> dict[str, str]:
    held = cost.memory.peak
    devices = {"devices": str(math.ceil(held / machine.memory_bytes))} if machine.memory_bytes else {}
    return {
        "frozen up to": str(boundary),
        "trained": f"{cost.trained_parameters / 1e9:.3g} B",
        "FLOPs": f"{cost.flops:.1e} {cost.flops_share:4.0%}",
        "backward": f"{cost.flops_backward:.1e} {cost.flops_backward_share:4.0%}",
        "time": duration(cost.seconds),
        "memory GiB": f"{held / GIB:,.4g}",
        "cache GiB": f"{cost.cache_bytes / GIB:,.4g}" if cost.cache_bytes else "",
        **more,
        **devices,
    }


def _shares(spent: Spent) -> str:
    return f"{spent.flops_share:4.0%} {spent.flops_backward_share:4.0%}"


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least one."""
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= length), ("s", 1))
    return f"{seconds / length:.3g} {unit}"
