"""Sections that no stage of the chain measures: the study, and speed compared with common tools."""

from collections.abc import Callable
from typing import Final

from stages.common.benchmark import AnswerSpeed, Benchmark, Memory, ModelResult, Point, Spread, Tracing
from stages.common.figures import inline
from stages.common.study_page import Cell as Shown
from stages.report.artifacts import Artifacts
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.wording import compact, decimal, parameters, percent, seconds, size

_OVER_ALL: Final = {
    "balance": "What the trace promises and what was measured",
    "depth": "What freezing costs, by the share of the layers",
}


def study_section(artifacts: Artifacts) -> Section | None:
    """Headline, tables and figures of the study; ``None`` if there is none."""
    found, figures = artifacts.study, artifacts.study_figures
    if found is None:
        return None
    section = Section("study", "The study", "Is the boundary right? What the study measured")
    section.sentences += [found.headline, found.scope, "This section is not part of the chain: make study measures it."]
    for name in found.report:
        shown = found.tables[name]
        rows = [[_shown(cell) for cell in row] for row in shown.rows]
        section.tables.append(Table(f"study-{name.replace(' ', '-')}", shown.caption, shown.headings, rows))
    for name in sorted(figures, key=lambda name: (name not in _OVER_ALL, name)):  # those over all datasets come first
        title = _OVER_ALL.get(name, f"Quality against the boundary: {name}")
        section.figures.append(Figure(title, inline(figures[name])))
    return section


def _shown(cell: Shown) -> Cell:
    """A cell of the study; the interval of a number is small print below it."""
    if isinstance(cell, str):
        return Cell(cell.replace("`", ""))
    value, text = cell
    shown, bracket, ends = text.partition(" [")
    return Cell(shown, bracket.strip() + ends, value, numeric=True)


def speed_section(artifacts: Artifacts) -> Section | None:
    """Fine-tunes, memory, tracing and deciding of every benchmark; ``None`` where there is none."""
    if not artifacts.benchmarks:
        return None
    section = Section("speed", "Speed", "Speed compared with common tools")
    section.sentences.append(
        "Ratios of times measured alternately in one run, round by round: the median and, in small print, the lowest "
        "and highest. More than 1 means that this project is faster. Ideal: the speed-up over boundary 0 if time "
        "were proportional to FLOPs. These tables are not part of the chain: make bench writes them."
    )
    for name, benchmark in artifacts.benchmarks.items():
        section.sentences.append(_machine(name, benchmark))
        for place, model in enumerate(benchmark.models):
            section.tables += _of_model(f"{name}-{place}", model)
    return section


def _machine(name: str, benchmark: Benchmark) -> str:
    machine = benchmark.machine
    accelerators = ", ".join(machine.get("accelerators") or [])
    where = accelerators or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    text = f"{name}: {where}, {machine.get('dtype')}, {benchmark.repeats} rounds, {benchmark.at[:10]}."
    if one := benchmark.deciding:
        shares = f"{percent(one.of_trainer_full)} of a full fine-tune of {one.epochs} epochs by the Trainer"
        text += (
            f" Trace, fit and plan took {seconds(one.seconds.median)}: {shares}, {percent(one.of_our_full)} of ours."
        )
    return text


def _of_model(name: str, model: ModelResult) -> list[Table]:
    work = model.workload
    caption = (
        f"{work.model} ({parameters(work.parameters)}, {work.layers} layers; {work.origin}): fine-tuning "
        f"{work.examples} examples of {work.mean_tokens:.0f} tokens, {work.shared_tokens} of them shared, in batches "
        f"of {work.batch_size}: our seconds, and how many times as fast as each."
    )
    device = next((f" on {way.device}" for way in model.tracing if way.device), "")
    peaks = f"{work.model}: peak memory of the process, libraries and weights included (GPU: allocated)."
    answers = f"{work.model}: training answers alone; ideal counts FLOPs and the optimizer's memory traffic."
    return [
        table(f"speed-{name}", caption, model.points, _POINTS),
        table(f"speed-memory-{name}", peaks, model.memory, _MEMORY),
        table(f"speed-tracing-{name}", f"{work.model}: tracing{device}.", model.tracing, _TRACING),
        *([table(f"speed-answers-{name}", answers, model.answer_side, _ANSWERS)] if model.answer_side else []),
    ]


def _times(ratio: float) -> str:
    return f"{decimal(ratio, 2)}×"


def _spread(laps: Spread, write: Callable[[float], str]) -> Cell:
    """The median and, in small print, the lowest and highest."""
    low, high = (write(value).removesuffix("×") for value in (laps.low, laps.high))
    return number(laps.median, write, f"{low} to {high}")


_POINTS: Final[Columns[Point]] = {
    "Boundary": lambda point: number(point.boundary),
    "Epochs": lambda point: number(point.epochs),
    "Ours": lambda point: _spread(point.seconds, seconds),
    "Trainer": lambda point: _spread(point.trainer_full, _times),
    "Trainer, frozen": lambda point: _spread(point.trainer_frozen, _times),
    "Trainer, LoRA": lambda point: _spread(point.trainer_lora, _times),
    "Own full": lambda point: _spread(point.speed_up, _times),
    "Ideal": lambda point: number(point.ideal, _times),
    "Of it": lambda point: number(point.of_ideal, percent),
}
_MEMORY: Final[Columns[Memory]] = {
    "Boundary": lambda memory: number(memory.boundary),
    "Ours": lambda memory: number(memory.ours, size),
    "Trainer": lambda memory: number(memory.trainer_full, size),
    "Trainer, frozen": lambda memory: number(memory.trainer_frozen, size),
    "Trainer, LoRA": lambda memory: number(memory.trainer_lora, size),
}
_ANSWERS: Final[Columns[AnswerSpeed]] = {
    "Method": lambda speed: speed.method,
    "Epochs": lambda speed: number(speed.epochs),
    "Ours": lambda speed: _spread(speed.seconds, seconds),
    "Own full": lambda speed: _spread(speed.over_full, _times),
    "Own half": lambda speed: _spread(speed.over_half, _times),
    "Trainer, LoRA": lambda speed: _spread(speed.over_trainer_lora, _times),
    "Ideal": lambda speed: number(speed.ideal, _times),
    "Of it": lambda speed: number(speed.of_ideal, percent),
}
_TRACING: Final[Columns[Tracing]] = {
    "Way": lambda way: way.what,
    "Examples per second": lambda way: number(way.examples_per_second.median, compact),
    "Of a plain forward pass": lambda way: _spread(way.of_plain_forward, _times),
}
