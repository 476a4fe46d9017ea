"""How fast this project is compared with common tools: tables of the benchmarks in the reports' folder."""

from collections.abc import Mapping

from stages.common.benchmark import Benchmark, Memory, ModelResult, Point, Spread
from stages.report.tables import Cell, Column, Section, Table, columns, number_cell, pairs
from stages.report.wording import THIN, compact, decimal, parameters, percent, seconds, size

_TIMES = "×"


def speed_section(benchmarks: Mapping[str, Benchmark]) -> Section | None:
    """Targets, fine-tunes, memory, tracing and processes of every benchmark; ``None`` where there is none."""
    if not benchmarks:
        return None
    section = Section("speed", "Speed", "Speed compared with common tools")
    section.sentences.append(
        "Ratios of times measured alternately in one run, round by round: the median and, in small print, the lowest "
        "and highest. More than 1 means that this project is faster. Ideal: the speed-up over boundary 0 if time "
        "were proportional to FLOPs. These tables are not part of the chain: make bench writes them."
    )
    for name, benchmark in benchmarks.items():
        section.sentences.append(_machine(name, benchmark))
        section.tables.append(_targets(name, benchmark))
        if missed := [(target.name, target.why) for target in benchmark.targets if target.why]:
            caption = f"{name}: where the time goes where a target is missed."
            section.tables.append(pairs(f"speed-missed-{name}", caption, missed, ("Target", "Where the time goes")))
        for number, model in enumerate(benchmark.models):
            prefix = f"{name}-{number}"
            section.tables += [_points(prefix, model), _memory(prefix, model), _tracing(prefix, model)]
        section.tables.append(_processes(name, benchmark))
    return section


def _machine(name: str, benchmark: Benchmark) -> str:
    machine = benchmark.machine
    accelerators = ", ".join(machine.get("accelerators") or [])
    where = accelerators or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    missed = sum(not target.met for target in benchmark.targets)
    met = f"{len(benchmark.targets) - missed} of {len(benchmark.targets)} targets met"
    return f"{name}: {where}, {machine.get('dtype')}, {benchmark.repeats} rounds, {benchmark.at[:10]}; {met}."


def _targets(name: str, benchmark: Benchmark) -> Table:
    headings = ("Target", "Goal", "Value", "Worst at", "Met")
    numeric = [Column(h, numeric=h in ("Goal", "Value")) for h in headings]
    rows = [
        [
            Cell(target.name),
            Cell(f"{'≥' if target.sense == 'at least' else '≤'}{THIN}{compact(target.goal)}", value=target.goal),
            number_cell(target.value, compact(target.value)),
            Cell(target.where),
            Cell("yes" if target.met else "no"),
        ]
        for target in benchmark.targets
    ]
    return Table(f"speed-targets-{name}", f"{name}: targets.", numeric, rows)


def _points(prefix: str, model: ModelResult) -> Table:
    work = model.workload
    headings = (
        "Boundary",
        "Epochs",
        "Ours",
        "Trainer",
        "Trainer, frozen",
        "Trainer, LoRA",
        "Own full",
        "Ideal",
        "Of it",
    )
    caption = (
        f"{work.model} ({parameters(work.parameters)}, {work.layers} layers; {work.origin}): fine-tuning "
        f"{work.examples} examples of {work.mean_tokens:.0f} tokens, {work.shared_tokens} of them shared, in batches "
        f"of {work.batch_size}: our seconds, and how many times as fast as each."
    )
    return Table(f"speed-{prefix}", caption, columns(headings, words=0), [_point(point) for point in model.points])


def _point(point: Point) -> list[Cell]:
    ratios = (point.trainer_full, point.trainer_frozen, point.trainer_lora, point.speed_up)
    low, high = seconds(point.seconds.low), seconds(point.seconds.high)
    return [
        number_cell(point.boundary, str(point.boundary)),
        number_cell(point.epochs, str(point.epochs)),
        number_cell(point.seconds.median, seconds(point.seconds.median), f"{low} to {high}"),
        *(_ratio(ratio) for ratio in ratios),
        number_cell(point.ideal, f"{decimal(point.ideal, 2)}{_TIMES}"),
        number_cell(point.of_ideal, percent(point.of_ideal)),
    ]


def _memory(prefix: str, model: ModelResult) -> Table:
    headings = ("Boundary", "Ours", "Trainer", "Trainer, frozen", "Trainer, LoRA")
    caption = f"{model.workload.model}: peak memory of the process, libraries and weights included (GPU: allocated)."
    return Table(
        f"speed-memory-{prefix}", caption, columns(headings, words=0), [_peaks(memory) for memory in model.memory]
    )


def _peaks(memory: Memory) -> list[Cell]:
    peaks = (memory.ours, memory.trainer_full, memory.trainer_frozen, memory.trainer_lora)
    return [number_cell(memory.boundary, str(memory.boundary)), *(number_cell(peak, size(peak)) for peak in peaks)]


def _tracing(prefix: str, model: ModelResult) -> Table:
    headings = ("Way", "Examples per second", "Of a plain forward pass")
    rows = [
        [Cell(way.what), number_cell(way.examples_per_second.median, compact(way.examples_per_second.median)), share]
        for way in model.tracing
        for share in [_ratio(way.of_plain_forward)]
    ]
    return Table(f"speed-tracing-{prefix}", f"{model.workload.model}: tracing.", columns(headings), rows)


def _processes(name: str, benchmark: Benchmark) -> Table:
    rows = [[Cell(f"start of {stage}"), _seconds(laps)] for stage, laps in benchmark.startup.items()]
    if benchmark.no_op_repro:
        rows.append([Cell("dvc repro with nothing to do"), _seconds(benchmark.no_op_repro)])
    if benchmark.deciding:
        rows.append([Cell("trace, fit and plan"), _seconds(benchmark.deciding.seconds)])
    if benchmark.bases:
        what = f"semantic bases, {benchmark.bases.vocabulary} × {benchmark.bases.hidden}"
        rows.append([Cell(what), number_cell(benchmark.bases.seconds, seconds(benchmark.bases.seconds))])
    for model in benchmark.models:
        if model.allocator:
            what = f"{model.workload.model}: time without the allocator settings"
            rows.append([Cell(what), _ratio(model.allocator.slower_without)])
    return Table(f"speed-processes-{name}", f"{name}: whole processes and settings.", columns(("What", "Time")), rows)


def _seconds(laps: Spread) -> Cell:
    return number_cell(laps.median, seconds(laps.median), f"{seconds(laps.low)} to {seconds(laps.high)}")


def _ratio(ratio: Spread) -> Cell:
    note = f"{decimal(ratio.low, 2)} to {decimal(ratio.high, 2)}"
    return number_cell(ratio.median, f"{decimal(ratio.median, 2)}{_TIMES}", note)
