"""An audit that cannot be argued with: what was taken away, hidden, forged or damaged is a mismatch by its name."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.lineage.ledger import Ledger, record_all
from flows.workspace import stage_environment
from tests.flows.lineage.test_verify import mismatches, rewrite
from tests.stage_sources import ROOT

STAGES = ["prepare", "train@1", "train@2", "judge"]


def delete_lock_entry(root: Path) -> None:
    content = YAML().load(root / "dvc.lock")
    del content["stages"]["judge"]
    YAML().dump(content, root / "dvc.lock")


def dangling(root: Path) -> None:
    (root / "data/prepared/one").unlink()
    (root / "data/prepared/one").symlink_to("nowhere")


def replaced_by_a_link(root: Path) -> None:
    shutil.move(root / "data/prepared", root.parent / "elsewhere")
    (root / "data/prepared").symlink_to(root.parent / "elsewhere")


def hidden_by_pattern(root: Path) -> None:
    (root / ".dvcignore").write_text("__pycache__/\n*.j2\n")
    (root / "data/prepared/chat.j2").write_text("evil")
    (root / "toystage/other.j2").write_text("evil")


def hidden_by_itself(root: Path) -> None:
    (root / "data/prepared/.dvcignore").write_text("evil.py\n.dvcignore\n")
    (root / "data/prepared/evil.py").write_text("evil")


def hidden_by_the_stock_patterns(root: Path) -> None:
    for name in (".work", "__pycache__"):
        (root / "data/prepared" / name).mkdir()
        (root / "data/prepared" / name / "x.pyc").write_text("evil")
    (root / ".dvcignore").write_text("__pycache__/\n.work/\n")


def ledger_line(number: int, change) -> object:
    def tamper(root: Path) -> None:
        ledger = root / "reports/lineage/records.jsonl"
        lines = ledger.read_bytes().splitlines()
        lines[number - 1] = change(lines[number - 1])
        ledger.write_bytes(b"".join(line + b"\n" for line in lines))

    return tamper


def without_parts(line: bytes) -> bytes:
    return json.dumps({key: value for key, value in json.loads(line).items() if key not in ("run", "lock")}).encode()


def not_in_the_lock(stage: str) -> str:
    return f"lock: {stage}: has no entry in dvc.lock, and record "


TAKEN_AWAY = {
    "dvc.lock": (lambda root: (root / "dvc.lock").unlink(), list(map(not_in_the_lock, STAGES))),
    "an entry of dvc.lock": (delete_lock_entry, [not_in_the_lock("judge")]),
    "dvc.yaml": (lambda root: (root / "dvc.yaml").unlink(), ["lock: dvc.yaml: is missing, and stages ran"]),
    "the head file": (
        lambda root: (root / "reports/lineage/records.head").unlink(),
        ["ledger: records.jsonl line 12: records.head is gone"],
    ),
    "a file: dangling link": (
        dangling,
        [
            "artifact: data/prepared: is not what prepare made: it differs in one (unreadable: No such file",
            "hidden: data/prepared/one: is a link to nowhere; prepare did not make it so",
        ],
    ),
    "a folder: link elsewhere": (replaced_by_a_link, ["hidden: data/prepared: is a link to "]),
    "a loop": (
        lambda root: (root / "data/prepared/loop").symlink_to("."),
        ["hidden: data/prepared/loop: is a link to ."],
    ),
    "hidden by a pattern": (
        hidden_by_pattern,
        [
            "hidden: data/prepared/chat.j2: is hidden from DVC by .dvcignore; prepare did not make it so",
            "hidden: toystage/other.j2: is hidden from DVC by .dvcignore",
        ],
    ),
    "hidden by itself": (
        hidden_by_itself,
        ["hidden: data/prepared/.dvcignore: is hidden", "hidden: data/prepared/evil.py: is hidden"],
    ),
    "hidden by the stock patterns": (
        hidden_by_the_stock_patterns,
        ["hidden: data/prepared/.work/x.pyc: is hidden", "hidden: data/prepared/__pycache__/x.pyc: is hidden"],
    ),
    "a bad ledger line": (ledger_line(3, lambda line: line[:50]), ["ledger: records.jsonl line 3: is not a record"]),
    "a record's parts": (ledger_line(9, without_parts), ["ledger: records.jsonl line 9: is not a record"]),
}


@pytest.mark.parametrize(("tamper", "expected"), TAKEN_AWAY.values(), ids=TAKEN_AWAY)
def test_what_was_taken_away_or_hidden_is_named_and_the_other_checks_still_run(ran, lineage, tamper, expected):
    rewrite(ran.root / "metrics.json", b'{"score":0.9}')
    shutil.copy(ran.root / "raw.txt", ran.root / "raw.copy")
    tamper(ran.root)
    answer = lineage(ran, "verify")
    assert answer.status == 1, answer.err
    lines = mismatches(answer)
    for start in [*expected, "artifact: metrics.json: is not what judge made: "]:
        assert any(line.startswith(start) for line in lines), (start, lines)
    assert not [line for line in answer.lines if line.endswith("has not run")]
    known = ("ledger: ", "hidden: ", "artifact: metrics.json: ", *expected)
    others = [line for line in lines if not line.startswith(known)]
    assert not others or "dangling" in str(tamper), others


def test_a_stage_that_is_gone_from_dvc_yaml_is_missed_until_git_knows_of_it(ran, lineage):
    graph = ran.root / "dvc.yaml"
    graph.write_text(graph.read_text().partition("  judge:\n")[0])
    answer = lineage(ran, "verify")
    assert mismatches(answer) == ["lock: judge: is gone from dvc.yaml, and the last commit has it"]
    accepted = lineage(ran, "verify", "--accept", "judge")
    assert (accepted.status, mismatches(accepted)) == (0, [])
    ran.commit("no judge")
    answer = lineage(ran, "verify")
    assert (answer.status, mismatches(answer)) == (0, [])


def test_a_lost_entry_may_be_accepted_by_its_name(ran, lineage):
    delete_lock_entry(ran.root)
    answer = lineage(ran, "verify", "--accept", "judge")
    assert (answer.status, mismatches(answer)) == (0, [])
    assert any(line.startswith(f"note: accepted: {not_in_the_lock('judge')}") for line in answer.lines)


def forge(ran, content: bytes = b'{"score":0.9}') -> None:
    """Other metrics, and a dvc.lock that fits them."""
    lock = ran.root / "dvc.lock"
    rewrite(ran.root / "metrics.json", content)
    old = ran.records("locked")[-1].lock.outputs["metrics.json"]
    lock.write_text(lock.read_text().replace(old, hashlib.md5(content).hexdigest()))


def as_stage(ran, *command: str) -> int:
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ran.root)])}
    whole = {**stage_environment(os.environ), **path, "DVC_STAGE": "judge", "DVC_ROOT": str(ran.root)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ran.root, env=whole, capture_output=True, check=False
    ).returncode


def test_help_and_a_refused_command_line_are_no_runs(ran):
    before = ran.ledger.read_bytes()
    assert as_stage(ran, "stages.plan", "--help") == 0
    assert as_stage(ran, "stages.finetune", "--seed", "x") == 2
    assert ran.ledger.read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        ["toystage", '{"score":0.9}', "metrics.json"],  # a true run, of another command
        ["toystage", '{"score":0.5}', "metrics.json"],  # a true run of this command; its output was other
    ],
    ids=["another command", "other content"],
)
def test_no_run_of_ones_own_explains_forged_outputs(ran, lineage, command):
    assert as_stage(ran, *command) == 0
    forge(ran)
    for _ in range(2):
        answer = lineage(ran, "verify")
        assert answer.status == 1
        (line,) = mismatches(answer)
        assert line.startswith("lock: judge: ")
        record_all(ran.root)
    ran.commit("taken over")  # a commit explains nothing
    assert lineage(ran, "verify").status == 1
    accepted = lineage(ran, "verify", "--accept", "judge")
    assert (accepted.status, mismatches(accepted)) == (0, [])
    assert any(line.startswith("note: accepted: lock: judge: ") for line in accepted.lines)


def test_outputs_edited_before_they_were_ever_recorded_are_not_those_of_the_run(ran, lineage):
    (ran.root / "toystage/__init__.py").write_text("# other code: no record has these inputs")
    ran.dvc("repro", "--force")
    forge(ran)
    answer = lineage(ran, "verify")
    assert mismatches(answer) == ["lock: judge: its run wrote other content than dvc.lock says: metrics.json"]
    assert "judge" in record_all(ran.root)
    assert lineage(ran, "verify").status == 1


def test_a_run_ends_with_the_hashes_of_its_outputs(ran):
    ends = {start.stage: end for start, end in zip(ran.records("start"), ran.records("end"), strict=True)}
    for locked in ran.records("locked"):
        assert ends[locked.stage].outputs == locked.lock.outputs
        assert locked.lock.outputs


def test_a_repaired_ledger_verifies_and_a_head_noted_before_does_not(ran, lineage):
    before = lineage(ran, "head").out
    ledger_line(3, lambda line: line[:50])(ran.root)
    assert lineage(ran, "verify").status == 1
    assert record_all(ran.root) == []  # the good lines are read
    assert lineage(ran, "repair").out == "line 3 was damaged: it is in records.torn now\n"
    assert lineage(ran, "repair").out == "nothing to repair\n"
    answer = lineage(ran, "verify")
    assert (answer.status, mismatches(answer)) == (0, []), answer.out
    assert any("lines 3 were damaged, and put aside on 2" in line for line in answer.lines)
    assert lineage(ran, "verify", "--head", before).status == 1
    assert lineage(ran, "verify", "--head", lineage(ran, "head").out).status == 0


def test_beside_a_run_verify_says_so(ran, lineage):
    (ran.root / "toystage/__main__.py").write_text(
        "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.05)\n"
        + (ran.root / "toystage/__main__.py").read_text()
    )
    environment = {**stage_environment(os.environ), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ran.root)])}
    command = [sys.executable, "-m", "dvc", "repro", "prepare"]
    with subprocess.Popen(command, cwd=ran.root, env=environment, stdout=subprocess.DEVNULL) as working:
        while not (ran.root / "begun").exists():
            assert working.poll() is None
        answer = lineage(ran, "verify")
        (ran.root / "go").touch()
    assert (answer.status, answer.out) == (3, "")
    assert f"(process {working.pid}) is at work here: verify when it has ended" in answer.err
    assert lineage(ran, "verify").status == 1  # the rest is stale now


def test_rewritten_history_is_noted(ran, lineage):
    commit = next(start.commit for start in ran.records("start") if start.stage == "judge")
    assert commit == ran.git("rev-parse", "HEAD~1").strip()
    ran.git("checkout", "--quiet", "--orphan", "other")
    ran.git("commit", "--quiet", "--message=squashed")
    ran.git("branch", "--delete", "--force", "main")
    answer = lineage(ran, "verify")
    assert (answer.status, mismatches(answer)) == (0, [])
    assert any(line.startswith(f"note: judge: commit {commit} of record ") for line in answer.lines)


def test_another_ledger_and_a_half_written_line_are_noted(ran, lineage, monkeypatch, tmp_path):
    with ran.ledger.open("ab") as file:
        file.write(b'{"half')
    elsewhere = shutil.copytree(ran.ledger.parent, tmp_path / "elsewhere") / "records.jsonl"
    monkeypatch.setenv("SALF_LEDGER", str(elsewhere))
    answer = lineage(ran, "verify")
    assert answer.status == 0
    assert f"note: the ledger is {elsewhere} (SALF_LEDGER)" in answer.lines
    assert "note: records.jsonl: its last line is half-written; the next run puts it aside" in answer.lines


def test_a_reader_that_has_seen_enough_is_no_fault(ran):
    program = f"{sys.executable} -m flows.lineage show judge --project {str(ran.root)!r}"
    shell = ["bash", "-c", f"set -o pipefail; {program} | head -1"]
    ended = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "asked: judge\n", "")


def test_a_terminal_of_few_characters_gets_the_rest(ran):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "flows.lineage", "show", f"{ran.root}/metrics.json", "--json"]
    ended = subprocess.run(
        [*command, "--project", ran.root], cwd=ROOT, env={**os.environ, **plain}, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert b"proj??ct/metrics.json" in ended.stdout


def test_outputs_beside_the_project_are_checked_without_its_neighbours(project, lineage):
    (project.root.parent / "beside").mkdir()
    (project.root / "dvc.yaml").write_text("stages: {base: {cmd: echo, outs: [../beside/x: {cache: false}]}}\n")
    (project.root.parent / "beside/x").write_text("x\n")
    project.dvc("commit", "--force")
    record_all(project.root)
    assert lineage(project, "verify").status == 0
    assert Ledger(project.ledger).newest_locked("base").outputs
