"""Artifacts: canonical bytes, and nothing half-written under a finished name."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.artifacts import (
    digest_of,
    read_json,
    replacing_file,
    replacing_folder,
    sha256_folder,
    significant,
    work_folder,
    write_json,
)
from stages.common.command import UserError


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
from stages.common.artifacts import replacing_folder
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
