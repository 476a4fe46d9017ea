"""Times of whole processes: the start of a stage, and deciding from trace to plan."""

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ruamel.yaml import YAML

from salf.engine.progress import progress
from stages.bench.contender import Kept
from stages.bench.workloads import stage_command, timed
from stages.common.benchmark import Spread


def stage_names() -> tuple[str, ...]:
    """The rooms that the graph's commands start, each once: several stages may start the same."""
    graph = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))
    commands = (stage["cmd"].split() for stage in graph["stages"].values())
    return tuple(dict.fromkeys(words[words.index("-m") + 1].removeprefix("stages.") for words in commands))


def startup(stages: Sequence[str], repeats: int, kept: Kept) -> dict[str, Spread]:
    """Seconds until a process could begin: bare Python, and stages that import all and print their help."""
    commands = {"python": [sys.executable, "-c", "pass"]} | {name: stage_command(name, "--help") for name in stages}
    laps: dict[str, list[float]] = {name: [] for name in commands}
    with progress("starting processes", repeats * len(commands), "processes") as advance:
        for round_ in range(repeats):
            for name, command in commands.items():
                laps[name].append(kept.once(f"start of {name}, round {round_}", partial(timed, command)))
                advance(1, name)
    return {name: Spread.of(seconds) for name, seconds in laps.items()}


def deciding(prepared: Path, repeats: int, kept: Kept) -> dict[str, list[float]]:
    """Seconds of the stages trace, fit and plan in the folder of the embedded task, by stage and round."""
    rounds: list[dict[str, float]] = []
    with progress("deciding: trace, fit and plan", repeats, "rounds") as advance:
        for round_ in range(repeats):
            rounds.append(kept.once(f"deciding, round {round_}", partial(_decide, prepared)))
            advance(1, "")
    return {stage: [laps[stage] for laps in rounds] for stage in rounds[0]}


def _decide(prepared: Path) -> dict[str, float]:
    """One after the other: each needs what the one before it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        read = ["--base", "base", "--prepared", "prepared"]
        traces, fitted = f"{folder}/traces", ["--law", f"{folder}/law.json", "--gains", f"{folder}/gains.csv"]
        options = {
            "trace": [*read, "--out", traces],
            "fit": ["--traces", traces, *fitted],
            "plan": [*read, *fitted, "--out", f"{folder}/plan"],
        }
        return {stage: timed(stage_command(stage, *words), prepared) for stage, words in options.items()}
