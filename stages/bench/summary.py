"""What a benchmark found, on a terminal: the targets, and every point of the fine-tunes."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from stages.common.benchmark import Benchmark, ModelResult


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
