"""``python -m stages.plan scale``: configurations and a workload → a table, and JSON on demand."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from stages.common.artifacts import write_json
from stages.common.command import UserError
from stages.plan.evidence import PreparedSizes, SplitSize, read_sizes
from stages.plan.frontier import cost_model
from stages.plan.scale.comparison import compare
from stages.plan.scale.machine import DEVICES, UTILISATION, Machine, device, given_rate, measured_by
from stages.plan.scale.memory import PRECISIONS
from stages.plan.scale.prediction import predict
from stages.plan.scale.published import configuration, published
from stages.plan.scale.table import print_comparison, print_prediction


def main(argv: Sequence[str]) -> None:
    """Say what every boundary would cost models of the given configurations."""
    args = _parser().parse_args(argv)
    machine, sizes = _machine(args), _sizes(args)
    predictions = []
    for model in map(configuration, args.config):
        work = cost_model(sizes, args.epochs, args.batch_rows, parts=args.passes, packed=model.shape.packed)
        predictions.append(predict(model, work, machine, PRECISIONS[args.precision]))
    compared = compare(machine, args.measured, Path()) if args.measured else []
    for prediction in predictions:
        print_prediction(prediction, Console())
    if compared:
        print_comparison(compared, machine, Console())
    if args.json:
        written = {
            "predictions": [prediction.as_json() for prediction in predictions],
            "predicted_and_measured": [asdict(fine_tune) for fine_tune in compared],
        }
        write_json(args.json, {"schema": 1, **written})


def _machine(args: argparse.Namespace) -> Machine:
    if args.measured:
        return measured_by(args.measured, Path("data/models"), Path("reports/runs"))
    return given_rate(args.teraflops) if args.teraflops else device(args.device, args.utilisation)


def _sizes(args: argparse.Namespace) -> PreparedSizes:
    if args.prepared:
        return read_sizes(args.prepared)
    if args.shared_tokens + args.answer_tokens > args.tokens:
        raise UserError(
            f"--tokens {args.tokens}: an example cannot be shorter than its beginning and its answer together "
            f"({args.shared_tokens} + {args.answer_tokens})"
        )
    train = SplitSize(rows=args.rows, tokens=args.rows * args.tokens, answer_tokens=args.rows * args.answer_tokens)
    return PreparedSizes(splits={"train": train}, shared_prefix_tokens=args.shared_tokens)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.plan scale",
        description="What fine-tuning above every boundary takes of operations, time and memory, from a model's "
        "configuration alone: no weights, no GPU. The assumptions are printed with the numbers.",
        epilog="example: python -m stages.plan scale --config llama-8b llama-70b --device h100 --rows 20000",
    )
    known = ", ".join(published())
    parser.add_argument("--config", nargs="+", required=True, help=f"a config.json, its folder, or one of: {known}")
    work = parser.add_argument_group("workload")
    count = _above(0, int)
    work.add_argument("--rows", type=count, default=10_000, help="training examples (default: 10000)")
    work.add_argument("--tokens", type=count, default=512, help="tokens of an example, answer included (default: 512)")
    work.add_argument("--answer-tokens", type=count, default=128, help="tokens of its answer (default: 128)")
    work.add_argument("--shared-tokens", type=_above(-1, int), default=0, help="tokens that all prompts begin with")
    work.add_argument("--prepared", type=Path, help="prepared data to take these four from, e.g. data/prepared")
    work.add_argument("--epochs", type=count, default=3, help="default: 3")
    work.add_argument("--batch-rows", type=count, default=16, help="examples of an optimizer step (default: 16)")
    work.add_argument("--passes", type=count, default=1, help="parts that a batch is computed in (default: 1)")
    where = parser.add_argument_group("machine")
    where.add_argument("--precision", choices=PRECISIONS, default="mixed", help="default: mixed")
    where.add_argument("--device", choices=DEVICES, default="h100", help="default: h100")
    where.add_argument(
        "--utilisation", type=_above(0, float), default=UTILISATION, help=f"of its peak (default: {UTILISATION})"
    )
    where.add_argument("--teraflops", type=_above(0, float), help="instead: the rate that training reaches, in 1e12/s")
    where.add_argument(
        "--measured",
        help="instead: the rate of a fine-tune made here, by its name, e.g. full-seed1; "
        "this chain's fine-tunes are then held to their predictions",
    )
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    return parser


def _above(least: int, kind: Callable[[str], float]) -> Callable[[str], float]:
    """A number above ``least``, for argparse."""

    def number(text: str) -> float:
        value = kind(text)
        if value <= least:
            raise argparse.ArgumentTypeError(f"{text} is not above {least}")
        return value

    return number
