"""A chain of records that shows every later change, whoever is killed while writing it."""

import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.lineage.ledger import Ledger, read_records
from salf.ledger import Record, append, repair
from tests.stage_sources import ROOT


@pytest.fixture
def ledger(tmp_path) -> Path:
    return tmp_path / "reports/lineage/records.jsonl"


def records(ledger: Path):
    return list(read_records(ledger))


def faults(ledger: Path) -> list[tuple[int, str]]:
    return Ledger(ledger).faults


def test_each_line_holds_the_hash_of_the_line_before_as_sha256sum_says(ledger):
    for number in range(3):
        append(ledger, Record(kind="note", number=number, word="Öl"))
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    previous = "0" * 64
    for number, line in enumerate(lines, start=1):
        record = json.loads(line)
        assert (record["previous"], record["seq"]) == (previous, number)
        assert line.decode() == json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
        told = subprocess.run(["sha256sum"], input=line[:-1], capture_output=True, check=True).stdout
        previous = told.decode().split()[0]
    assert Ledger(ledger).head.sha256 == previous
    assert previous in Ledger(ledger).hashes
    assert faults(ledger) == []


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [lines[0], lines[1].replace(b'"number":1', b'"number":7'), *lines[2:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [lines[0], lines[1], lines[1], *lines[2:]],
        lambda lines: [lines[0], b"{}\n", *lines[2:]],
    ],
    ids=["edited", "removed", "first removed", "reordered", "inserted", "emptied"],
)
def test_a_changed_line_breaks_the_chain(ledger, tamper):
    for number in range(4):
        append(ledger, Record(kind="note", number=number))
    assert not faults(ledger)
    ledger.write_bytes(b"".join(tamper(ledger.read_bytes().splitlines(keepends=True))))
    assert faults(ledger)


@pytest.fixture
def three(ledger) -> Path:
    """A ledger of three records."""
    for number in range(3):
        append(ledger, Record(kind="note", number=number))
    return ledger


def test_the_head_tells_how_many_records_there_are_and_the_newest_ones_hash(three):
    assert three.with_suffix(".head").read_text() == f"3 {Ledger(three).head.sha256}\n"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [*lines[:-1], lines[-1].replace(b'"number":2', b'"number":7')],
        lambda lines: lines[:-1],
        lambda lines: lines[:1],
        lambda lines: lines[:0],
    ],
    ids=["newest edited", "one cut off", "two cut off", "emptied"],
)
def test_an_edit_of_the_newest_record_and_a_cut_are_found_by_the_head_and_stay_so(three, tamper):
    noted = Ledger(three).head.sha256
    three.write_bytes(b"".join(tamper(three.read_bytes().splitlines(keepends=True))))
    assert noted not in Ledger(three).hashes
    for _ in range(4):  # records that come later hide nothing
        ((_, fault),) = faults(three)
        assert "records.head names another last record: the newest record was edited, or records were removed" in fault
        append(three, Record(kind="note"))


def test_a_writer_killed_between_record_and_head_is_no_fault_and_the_next_one_mends_it(three):
    file = three.with_suffix(".head")
    before = file.read_bytes()
    append(three, Record(kind="note", number=3))
    file.write_bytes(before)
    assert faults(three) == []
    append(three, Record(kind="note", number=4))
    assert file.read_text() == f"5 {Ledger(three).head.sha256}\n"
    assert faults(three) == []


def test_only_the_last_record_may_be_beyond_the_head_and_it_must_follow(three):
    file = three.with_suffix(".head")
    before = file.read_bytes()
    append(three, Record(kind="note", number=3))
    whole = three.read_bytes()
    append(three, Record(kind="note", number=4))
    file.write_bytes(before)
    assert len(faults(three)) == 1
    three.write_bytes(whole.replace(json.loads(whole.splitlines()[-1])["previous"].encode(), b"1" * 64))
    assert [line for line, _ in faults(three)] == [4]


def test_a_lost_head_stays_lost_until_the_repair_writes_and_records_it(three):
    file = three.with_suffix(".head")
    file.unlink()
    append(three, Record(kind="note"))
    assert not file.exists()
    assert [fault.partition(",")[0] for _, fault in faults(three)] == ["records.head is gone"]
    done = repair(three)
    assert (done.new_head, done.put_aside) == (True, [])
    assert (faults(three), [record.new_head for record in Ledger(three).repairs]) == ([], [True])
    assert (repair(three).new_head, len(records(three))) == (False, 5)


def test_a_writer_killed_before_the_first_head_is_no_fault(ledger):
    append(ledger, Record(kind="note"))
    ledger.with_suffix(".head").unlink()
    assert faults(ledger) == []
    append(ledger, Record(kind="note"))
    assert ledger.with_suffix(".head").read_text() == f"{Ledger(ledger).head}\n"


@pytest.mark.parametrize("damaged", [[1], [3], [6], [2, 3], [5, 6], [1, 2, 3, 4, 5, 6]], ids=str)
def test_damaged_lines_are_put_aside_and_all_other_lines_keep_their_bytes(ledger, damaged):
    for number in range(6):
        append(ledger, Record(kind="note", number=number))
    before = ledger.read_bytes().splitlines()
    rotten = [b"\x00rot" + line[9:] if n in damaged else line for n, line in enumerate(before, 1)]
    ledger.write_bytes(b"".join(line + b"\n" for line in rotten))
    assert {n for n, text in faults(ledger) if text == "is not a record"} == set(damaged)
    assert [record.number + 1 for record in records(ledger)] == [n for n in range(1, 7) if n not in damaged]
    assert repair(ledger).put_aside == damaged
    assert faults(ledger) == []
    append(ledger, Record(kind="note", number=7))
    after = ledger.read_bytes().splitlines()
    assert [n for n, line in enumerate(before, 1) if after[n - 1] != line] == damaged
    assert ledger.with_name("records.torn").read_bytes().splitlines() == [rotten[n - 1] for n in damaged]
    assert faults(ledger) == []


def test_a_repair_hides_no_edit_and_no_cut(ledger):
    for number in range(6):
        append(ledger, Record(kind="note", number=number))
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"number":1', b'"number":7')
    lines[3] = b"rot\n"
    ledger.write_bytes(b"".join(lines[:5]))
    repair(ledger)
    assert [line for line, _ in faults(ledger)] == [3, 6]  # 3 does not follow from 2; the head names another end


def test_a_line_that_no_repair_put_aside_cannot_be_replaced(ledger):
    for number in range(3):
        append(ledger, Record(kind="note", number=number))
    lines = ledger.read_bytes().splitlines()
    facts = json.loads(lines[1]) | {"kind": "aside", "sha256": hashlib.sha256(lines[1]).hexdigest()}
    ledger.write_bytes(b"".join(line + b"\n" for line in (lines[0], json.dumps(facts).encode(), lines[2])))
    assert faults(ledger) == [(2, "was put aside, and no record says so")]


def test_a_writer_that_waits_for_a_repair_writes_into_the_repaired_ledger(ledger):
    append(ledger, Record(kind="note", number=0))
    with ledger.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code = (
            "import sys; from pathlib import Path; from salf.ledger import Record, append\nprint('here', flush=True)\n"
        )
        code += "append(Path(sys.argv[1]), Record(kind='note', number=1))"
        writer = subprocess.Popen([sys.executable, "-c", code, ledger], cwd=ROOT, stdout=subprocess.PIPE)
        writer.stdout.readline()
        other = ledger.with_name("other")
        other.write_bytes(ledger.read_bytes())
        other.replace(ledger)
    assert writer.wait() == 0
    assert [record.number for record in records(ledger)] == [0, 1]


def test_a_head_that_finds_no_room_takes_its_record_back(three, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    before = three.read_bytes()
    monkeypatch.setattr("salf.ledger.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        append(three, Record(kind="note"))
    assert three.read_bytes() == before
    assert faults(three) == []


def test_a_half_written_last_line_is_put_aside_and_the_chain_goes_on(ledger):
    append(ledger, Record(kind="note", number=1))
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + whole[:40])
    assert [record.number for record in records(ledger)] == [1]
    append(ledger, Record(kind="note", number=2))
    assert [record.kind for record in records(ledger)] == ["note", "repair", "note"]
    assert records(ledger)[1].cut_bytes == 40
    assert ledger.with_name("records.torn").read_bytes() == whole[:40] + b"\n"
    assert faults(ledger) == []


def test_processes_that_append_at_once_lose_nothing(ledger):
    code = (
        "import sys; from pathlib import Path; from salf.ledger import Record, append\n"
        "for n in range(50): append(Path(sys.argv[1]), Record(kind='note', who=sys.argv[2], n=n, ballast='x' * 5000))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, ledger, str(n)], cwd=ROOT) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert faults(ledger) == []
    assert {(r.who, r.n) for r in records(ledger)} == {(str(w), n) for w in range(4) for n in range(50)}


def test_a_writer_killed_at_any_moment_leaves_a_ledger_that_goes_on(ledger):
    code = (
        "import sys; from pathlib import Path; from salf.ledger import Record, append\n"
        "while True: append(Path(sys.argv[1]), Record(kind='note', ballast='x' * 200_000))"
    )
    for _ in range(4):
        before = ledger.stat().st_size if ledger.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", code, ledger], cwd=ROOT)
        while not ledger.exists() or ledger.stat().st_size < before + 400_000:
            assert writer.poll() is None
        writer.kill()
        writer.wait()
    append(ledger, Record(kind="note", last=True))
    assert records(ledger)[-1].last
    assert faults(ledger) == []


def test_a_record_that_finds_no_room_leaves_the_ledger_as_it_was(ledger):
    append(ledger, Record(kind="note", number=1))
    before = ledger.read_bytes()
    code = (
        "import resource, signal, sys; from pathlib import Path; from salf.ledger import Record, append\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "append(Path(sys.argv[1]), Record(kind='note', ballast='x' * 5000))"
    )
    # -B: a module that is compiled under the limit would be left cut off in the environment.
    ended = subprocess.run([sys.executable, "-B", "-c", code, ledger], cwd=ROOT, capture_output=True, text=True)
    assert "File too large" in ended.stderr
    assert ledger.read_bytes() == before


@pytest.mark.parametrize("version", ["0.1.0", "0.2-dev"])
def test_a_ledger_of_an_older_version_is_read_and_goes_on(ledger, version):
    ledger.parent.mkdir(parents=True)
    content = Path(__file__).with_name(f"ledger-{version}.jsonl").read_bytes()
    ledger.write_bytes(content)
    newest = hashlib.sha256(content.splitlines()[-1]).hexdigest()
    ledger.with_suffix(".head").write_text(f"{len(content.splitlines())} {newest}\n")
    (start, end, locked) = [record for record in records(ledger) if record.kind != "repair"]
    assert (start.stage, start.machine.cores, end.seconds, end.run) == ("fit", 2, 1.5, start.run)
    assert locked.lock.outputs == {"b": f"{'1' * 32}.dir"}
    kept = json.loads(content.splitlines()[-1])["lock"]
    assert locked.lock.model_dump(exclude_unset=True) == kept
    assert Ledger(ledger).with_entry("fit", locked.lock).run == start.run
    append(ledger, locked.model_copy(update={"outcome": "restored"}))
    assert faults(ledger) == []
    assert json.loads(ledger.read_bytes().splitlines()[-1])["lock"] == kept
