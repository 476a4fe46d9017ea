"""Sections that no stage of the chain measures: the study, and speed compared with common tools."""

from collections.abc import Callable
from typing import Final

from stages.common.benchmark import Benchmark, Memory, ModelResult, Point, Spread, Target, Tracing
from stages.common.figures import inline
from stages.common.study_page import Cell as Shown
from stages.report.artifacts import Artifacts
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.wording import THIN, compact, decimal, parameters, percent, seconds, size

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
    """Targets, fine-tunes, memory, tracing and processes of every benchmark; ``None`` where there is none."""
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
        section.tables.append(_targets(name, benchmark))
        for place, model in enumerate(benchmark.models):
            section.tables += _of_model(f"{name}-{place}", model)
        section.tables.append(_processes(name, benchmark))
    return section


def _machine(name: str, benchmark: Benchmark) -> str:
    machine = benchmark.machine
    accelerators = ", ".join(machine.get("accelerators") or [])
    where = accelerators or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    met = f"{sum(target.met for target in benchmark.targets)} of {len(benchmark.targets)} targets met"
    return f"{name}: {where}, {machine.get('dtype')}, {benchmark.repeats} rounds, {benchmark.at[:10]}; {met}."


def _targets(name: str, benchmark: Benchmark) -> Table:
    columns: Columns[Target] = {
        "Target": lambda one: one.name,
        "Goal": lambda one: Cell(f"{_SENSES[one.sense]}{THIN}{compact(one.goal)}", value=one.goal, numeric=True),
        "Value": lambda one: number(one.value, compact),
        "Worst at": lambda one: one.where,
        "Met": lambda one: "yes" if one.met else "no",
        "Where the time goes": lambda one: one.why or "",
    }
    return table(f"speed-targets-{name}", f"{name}: targets.", benchmark.targets, columns)


def _of_model(name: str, model: ModelResult) -> list[Table]:
    work = model.workload
    caption = (
        f"{work.model} ({parameters(work.parameters)}, {work.layers} layers; {work.origin}): fine-tuning "
        f"{work.examples} examples of {work.mean_tokens:.0f} tokens, {work.shared_tokens} of them shared, in batches "
        f"of {work.batch_size}: our seconds, and how many times as fast as each."
    )
    device = next((f" on {way.device}" for way in model.tracing if way.device), "")
    peaks = f"{work.model}: peak memory of the process, libraries and weights included (GPU: allocated)."
    return [
        table(f"speed-{name}", caption, model.points, _POINTS),
        table(f"speed-memory-{name}", peaks, model.memory, _MEMORY),
        table(f"speed-tracing-{name}", f"{work.model}: tracing{device}.", model.tracing, _TRACING),
    ]


def _processes(name: str, benchmark: Benchmark) -> Table:
    rows = [(f"start of {stage}", _spread(laps, seconds)) for stage, laps in benchmark.startup.items()]
    if benchmark.no_op_repro:
        rows.append(("dvc repro with nothing to do", _spread(benchmark.no_op_repro, seconds)))
    if benchmark.deciding:
        rows.append(("trace, fit and plan", _spread(benchmark.deciding.seconds, seconds)))
    if bases := benchmark.bases:
        what = f"semantic bases, {bases.vocabulary} × {bases.hidden}"
        rows.append((what, number(bases.seconds, seconds)))
    for model in benchmark.models:
        if model.allocator:
            what = f"{model.workload.model}: time without the allocator settings"
            rows.append((what, _spread(model.allocator.slower_without, _times)))
    return Table(f"speed-processes-{name}", f"{name}: whole processes and settings.", ("What", "Time"), rows)


def _times(ratio: float) -> str:
    return f"{decimal(ratio, 2)}×"


def _spread(laps: Spread, write: Callable[[float], str]) -> Cell:
    """The median and, in small print, the lowest and highest."""
    low, high = (write(value).removesuffix("×") for value in (laps.low, laps.high))
    return number(laps.median, write, f"{low} to {high}")


_SENSES: Final = {"at least": "≥", "at most": "≤"}
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
_TRACING: Final[Columns[Tracing]] = {
    "Way": lambda way: way.what,
    "Examples per second": lambda way: number(way.examples_per_second.median, compact),
    "Of a plain forward pass": lambda way: _spread(way.of_plain_forward, _times),
}
