"""Times of whole processes: the start of a stage, and deciding from trace to plan."""

import sys
from collections.abc import Mapping, Sequence
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
    laps = _in_turn("starting processes", commands, None, repeats, kept)
    return {name: Spread.of(seconds) for name, seconds in laps.items()}


def deciding(prepared: Path, repeats: int, kept: Kept) -> dict[str, list[float]]:
    """Seconds of the stages trace, fit and plan in the folder of the embedded task, by stage and round.

    Each needs what the one before it wrote.
    """
    read, fitted = ["--base", "base", "--prepared", "prepared"], ["--law", "law.json", "--gains", "gains.csv"]
    commands = {
        "trace": stage_command("trace", *read, "--out", "traces"),
        "fit": stage_command("fit", "--traces", "traces", *fitted),
        "plan": stage_command("plan", *read, *fitted, "--out", "plan"),
    }
    return _in_turn("deciding", commands, prepared, repeats, kept)


def _in_turn(
    title: str, commands: Mapping[str, list[str]], folder: Path | None, repeats: int, kept: Kept
) -> dict[str, list[float]]:
    laps: dict[str, list[float]] = {name: [] for name in commands}
    with progress(title, repeats * len(commands), "processes") as advance:
        for round_ in range(repeats):
            for name, command in commands.items():
                laps[name].append(kept.once(f"{title}: {name}, round {round_}", partial(timed, command, folder)))
                advance(1, name)
    return laps
