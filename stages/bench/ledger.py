"""The lineage commands on a long ledger and on one of a tenth of its records, in turn: CPU time and memory.

This module loads no torch: a child's largest memory counts from its parent's at the fork.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from salf.files import write_json
from salf.ledger import GENESIS, LEDGER, Machine, head_of
from stages.bench.spread import Spread
from stages.common.command import exit_code

COMMANDS: Final = ("show", "verify", "record")
MOST_TIMES, MOST_BYTES = 12.0, 200e6  # the goal: ten times the records
_ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
_GRAPH: Final = """stages:
  train: {cmd: mkdir -p models && echo run > models/run, deps: [raw], outs: [models/run]}
  judge: {cmd: echo 1 > metrics.json, deps: [models], outs: [metrics.json]}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the commands, and write CPU seconds and memory as JSON."""
    parser = argparse.ArgumentParser(prog="python -m stages.bench.ledger", description=__doc__)
    parser.add_argument("--records", type=int, default=50_000, help="of the long ledger (default: 50,000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("reports/ledger-benchmark.json"), help="file to write")
    args = parser.parse_args(argv)
    sizes = (args.records // 10, args.records)
    with tempfile.TemporaryDirectory() as room:
        projects = [_project(Path(room, str(size)), size) for size in sizes]
        rounds = range(args.repeats)
        laps = {
            command: [
                [_measured(project, command, size) for project, size in zip(projects, sizes, strict=True)]
                for _ in rounds
            ]
            for command in COMMANDS
        }
    write_json(args.out, {"machine": Machine.here().model_dump(), "records": sizes, "seconds_and_bytes": laps})
    for command, pairs in laps.items():
        ratio = Spread.of_ratios([long for _, (long, _) in pairs], [short for (short, _), _ in pairs])
        peak = max(peak for _, (_, peak) in pairs)
        met = "met" if ratio.median <= MOST_TIMES and peak < MOST_BYTES else "missed"
        print(f"{command}: {ratio} times as long, {peak / 1e6:.0f} MB: {met}")
    print(f"goal: ten times the records take at most {MOST_TIMES:g} times as long, below {MOST_BYTES / 1e6:.0f} MB")


def _measured(project: Path, command: str, records: int) -> tuple[float, int]:
    """CPU seconds and largest memory of a lineage command that succeeds."""
    words = [sys.executable, "-m", "flows.lineage", command, *([newest_result(records)] if command == "show" else [])]
    process = subprocess.Popen(words, cwd=project, env=_ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _project(folder: Path, records: int) -> Path:
    """A small project whose ledger holds many earlier runs, each with other results."""
    write_ledger(folder / LEDGER, records)
    (folder / "raw").write_text("raw\n", encoding="utf-8")
    (folder / "dvc.yaml").write_text(_GRAPH, encoding="utf-8")
    for line in ("git init", "python -m dvc init", "python -m dvc repro", "python -m flows.lineage record"):
        command = [sys.executable if word == "python" else word for word in line.split()]
        subprocess.run(command, cwd=folder, env=_ENVIRONMENT, check=True, capture_output=True)
    return folder


def write_ledger(path: Path, records: int) -> None:
    """Write a whole ledger in one go: runs of fine-tunes and of what judges them, of 1.6 KB a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = GENESIS
    with path.open("wb") as file:
        for number in range(records):
            facts = {"schema": 1, "seq": number + 1, "previous": previous, "at": "2026-01-01T00:00:00.000000Z"}
            line = json.dumps(facts | _facts(number), sort_keys=True, separators=(",", ":")).encode()
            previous = hashlib.sha256(line).hexdigest()
            file.write(line + b"\n")
    head_of(path).write_text(f"{records} {previous}\n", encoding="utf-8")


def newest_result(records: int) -> str:
    """The hash of the newest judgement in a ledger of this many records, whose models are in no record."""
    return f"{(records // 3 - 1) // 10 * 10:032x}"


def _facts(number: int) -> dict[str, Any]:
    """A start, an end and what DVC locked, in turn; every tenth run judges the twenty models of that time."""
    turn, kind = divmod(number, 3)
    stage, out = (f"train@{turn % 20}", f"models/{turn % 20}") if turn % 10 else ("judge", "metrics.json")
    run, command = f"{turn:032x}", f"python -m stages.toy --out {out}"
    if kind == 0:
        versions = {"toy": "1" * 2200}
        return {"kind": "start", "run": run, "stage": stage, "command": command.split(), "versions": versions}
    if kind == 1:
        return {"kind": "end", "run": run, "status": 0, "seconds": 1.5, "outputs": {out: run}}
    deps = [{"path": f"part-{n}", "hash": "md5", "md5": f"{turn * 20 + n:032x}", "size": 9} for n in range(20)]
    deps += [{"path": "models", "hash": "md5", "md5": f"{run}.dir", "size": 9}] if stage == "judge" else []
    lock = {"cmd": command, "deps": deps, "params": {}, "outs": [{"path": out, "hash": "md5", "md5": run, "size": 9}]}
    return {"kind": "locked", "run": run, "stage": stage, "outcome": "ran", "lock": lock, "flow_run": None}


if __name__ == "__main__":
    sys.exit(exit_code(main))
