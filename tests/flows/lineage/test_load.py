"""Reading stays linear in the ledger's records: by what is done, and by CPU time and memory."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from flows.lineage import known, ledger
from salf.ledger import GENESIS, LEDGER, head_of
from tests.conftest import PROJECT

USED = """
import sys, time
from pathlib import Path
from flows.lineage.__main__ import main
assert main(sys.argv[1:]) < 2  # 1: verify misses results that are in no record
print("used", time.process_time(), Path("/proc/self/status").read_text())
"""


@pytest.mark.parametrize("command", ["show", "verify"])
def test_ten_times_the_records_are_ten_times_the_work(ran, lineage, monkeypatch, command):
    counts = Counter()

    def counting(module, name: str, found) -> None:
        def counted(*arguments):
            counts[name] += 1
            return found(*arguments)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((ledger, "parse"), (ledger, "digests"), (known, "folder_name")):
        counting(module, name, getattr(module, name))
    work = {}
    for records in (300, 3000):
        counts.clear()
        write_ledger(ran.root / LEDGER, records)
        answer = lineage(ran, command, *([newest_result(records)] if command == "show" else []))
        assert not answer.err
        work[records] = dict(counts)
    assert work[300]["parse"] >= 300
    assert work[300].keys() == work[3000].keys()
    assert ("folder_name" in work[300]) == (command == "show")
    for name, times in work[3000].items():
        assert times <= 12 * work[300][name], (name, work)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["show", "verify", "record"])
def test_ten_times_the_records_take_at_most_twelve_times_as_long_and_little_memory(ran, command):
    seconds, bytes_ = [], []
    for records in (5_000, 50_000):
        write_ledger(ran.root / LEDGER, records)
        words = [command, *([newest_result(records)] if command == "show" else []), "--project", str(ran.root)]
        done = subprocess.run([sys.executable, "-c", USED, *words], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds.append(float(re.search(r"^used ([\d.]+)", done.stdout, re.MULTILINE)[1]))
        bytes_.append(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1]))
    assert seconds[1] <= 12 * seconds[0]
    assert max(bytes_) < 200e6


def write_ledger(path, records):
    """Write a whole ledger in one go: runs of fine-tunes and of what judges them, of 1.6 KB a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = GENESIS
    with path.open("wb") as file:
        for number in range(records):
            facts = {"schema": 1, "seq": number + 1, "previous": previous, "at": "2026-01-01T00:00:00.000000Z"}
            line = json.dumps(facts | record(number), sort_keys=True, separators=(",", ":")).encode()
            previous = hashlib.sha256(line).hexdigest()
            file.write(line + b"\n")
    head_of(path).write_text(f"{records} {previous}\n", encoding="utf-8")


def newest_result(records):
    """The hash of the newest judgement in a ledger of this many records, whose models are in no record."""
    return f"{(records // 3 - 1) // 10 * 10:032x}"


def record(number):
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
