"""Artifacts: canonical bytes, and nothing half-written under a finished name."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salf.errors import UserError
from salf.files import (
    digest_of,
    read_json,
    replacing_file,
    replacing_folder,
    sealed_file,
    sha256_folder,
    significant,
    work_folder,
    write_json,
)


def test_json_is_canonical(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1.5, None], "a": "ö"})
    write_json(tmp_path / "b.json", {"a": "ö", "b": [1.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    assert not list((tmp_path / ".work").iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_a_bug_and_leaves_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": value})
    assert read_json(tmp_path / "a.json") == 1


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="damaged JSON"):
        read_json(tmp_path / "a.json")


def fail_after_writing(path):
    path.write_text("new")
    raise RuntimeError


def test_a_failed_block_leaves_the_old_file_and_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x").write_text("old")
    with pytest.raises(RuntimeError), replacing_file(tmp_path / "file") as aside:
        fail_after_writing(aside)
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "folder") as aside:
        fail_after_writing(aside / "x")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/x").read_text() == "old"


def sealed(path, content):
    with replacing_file(path, sealed=True) as aside:
        aside.write_bytes(content)
    return sealed_file(path)


def changed(file, content):
    file.write_bytes(content)
    return file


DATA = bytes(range(256)) * 40
HARM = {
    "a bit": lambda file, _: changed(file, DATA[:-1] + bytes([DATA[-1] ^ 128])),
    "zeros": lambda file, _: changed(file, bytes(4096) + DATA[4096:]),
    "cut": lambda file, _: changed(file, DATA[:-1]),
    "empty": lambda file, _: changed(file, b""),
    "longer": lambda file, _: changed(file, DATA + b"0"),
    "blocks in another order": lambda file, _: changed(file, DATA[5000:] + DATA[:5000]),
    "the content of another": lambda file, other: shutil.copy(other, file),
    "another under this name": lambda file, other: (
        os.replace(other, f"{file.parent}/part-1.5-{other.name[-12:]}") or file.unlink()
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_sealed_work_that_was_changed_is_named_and_not_taken(tmp_path, harm, capsys):
    """A file's format notices some of these at most: vllm-project/vllm#53537, bghira/SimpleTuner#2613."""
    path, other = tmp_path / "part-1.5.bin", tmp_path / "part-1.bin"
    file = sealed(path, DATA)
    other_file = sealed(other, DATA[::-1])
    assert file.read_bytes() == DATA
    assert sealed(path, DATA) == file
    assert capsys.readouterr().out == ""
    HARM[harm](file, other_file)
    assert sealed_file(path) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path.parent}/part-1.5-")
    assert line.endswith(": damaged, its checksum does not match; this work is repeated")
    assert sealed(path, b"new").read_bytes() == b"new"
    assert len(list(tmp_path.glob("part-1.5-*"))) == 1  # the damaged one is gone


def test_a_full_disk_is_told_with_the_file_also_where_the_library_names_none(tmp_path):
    with pytest.raises(OSError, match=r"a\.parquet") as fault, replacing_file(tmp_path / "a.parquet"):
        raise OSError(errno.ENOSPC, "Error writing bytes to file")  # as pyarrow has it
    assert fault.value.filename == str(tmp_path / "a.parquet")


def test_sealed_work_replaces_older_work_of_its_own_name_alone(tmp_path):
    names = ["a.bin", "a-1.bin", "a-[0].bin", "a-0123abcd.bin"]
    for content in (b"old", b"new"):
        for name in names:
            sealed(tmp_path / name, content)
    assert len(list(tmp_path.glob("*.bin"))) == len(names)
    assert {sealed_file(tmp_path / name).read_bytes() for name in names} == {b"new"}
    assert sealed_file(tmp_path / "b.bin") is None


def test_a_folder_takes_its_place_whole(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/gone").write_text("old")
    with replacing_folder(tmp_path / "folder") as aside:
        write_json(aside / "x.json", 1)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["x.json"]


def test_a_linked_output_is_replaced_and_not_written_through(tmp_path):
    """DVC's cache is linked into the workspace: writing in place would corrupt it."""
    (tmp_path / "cache").write_text("cached")
    os.link(tmp_path / "cache", tmp_path / "out")
    with replacing_file(tmp_path / "out") as aside:
        aside.write_text("new")
    assert (tmp_path / "cache").read_text() == "cached"


KILLED = """
import sys, time
from pathlib import Path
from salf.files import replacing_folder
with replacing_folder(Path(sys.argv[1])) as aside:
    (aside / "x").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_folder_and_the_next_run_recovers(tmp_path):
    target = tmp_path / "folder"
    with replacing_folder(target) as aside:
        (aside / "x").write_text("old")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (target / "x").read_text() == "old"
    with replacing_folder(target) as aside:
        assert list(aside.iterdir()) == []
        (aside / "x").write_text("new")
    assert (target / "x").read_text() == "new"


def test_unfinished_work_is_found_again_by_its_fingerprint_alone(tmp_path):
    first = work_folder(tmp_path / "traces", "a" * 64)
    (first / "part").write_text("done")
    assert (work_folder(tmp_path / "traces", "a" * 64) / "part").exists()
    other = work_folder(tmp_path / "traces", "b" * 64)
    assert list(other.iterdir()) == []
    assert not first.exists()


def test_folder_hashes_tell_names_and_bytes(tmp_path):
    digests = set()
    for name, text in [("a", "x"), ("b", "x"), ("a", "y")]:
        folder = tmp_path / f"{name}{text}{time.monotonic_ns()}"
        folder.mkdir()
        (folder / name).write_text(text)
        digests.add(sha256_folder(folder))
    assert len(digests) == 3


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_digests_do_not_depend_on_the_order_of_keys(value):
    assert digest_of(value) == digest_of(json.loads(json.dumps(dict(reversed(value.items())))))


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_rounding_keeps_ten_digits(value):
    assert significant(value) == pytest.approx(value, rel=1e-9)
    assert significant(significant(value)) == significant(value)
