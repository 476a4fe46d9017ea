"""The measurements of docs/example: sweeps have allowed parameters, and the planted fault is one alone."""

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest

from flows.overrides import changed, parse
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.docs_blocks import overrides

# In the place of python: notes the command, and runs what is no module.
NOTING = f"""#!{sys.executable}
import json, subprocess, sys
with open("commands.jsonl", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
sys.exit(0 if sys.argv[1] == "-m" else subprocess.call([{sys.executable!r}, *sys.argv[1:]]))
"""


def commands(folder, script: str) -> list[list[str]]:
    """What a script gives to python, run in a folder of its own."""
    shutil.copytree(PROJECT / "docs/example", folder / "docs/example")
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(NOTING)
    (folder / "bin/python").chmod(0o755)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    path = os.pathsep.join((str(folder / "bin"), os.environ["PATH"]))
    subprocess.run(
        ["sh", f"docs/example/{script}", "--set", "finetune.epochs=1"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=True,
    )
    return [json.loads(line) for line in (folder / "commands.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("script", "points"), [("few-examples.sh", [9]), ("shift.sh", [1, 1]), ("harm.sh", [1, 1])])
def test_every_point_of_a_measurement_has_allowed_parameters(tmp_path, script, points):
    sweeps = [command for command in commands(tmp_path, script) if command[:2] == ["-m", "flows.sweep"]]
    assert len(sweeps) == len(points)
    for command, expected in zip(sweeps, points, strict=True):
        options = {word for word in command if word.startswith("--")}
        assert options <= {"--name", "--table", "--targets", "--set"}
        axes = {
            key: value if isinstance(value, list) else [value]
            for key, value in parse(overrides(command, "--set")).items()
        }
        found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        assert len(found) == expected
        for values in found:
            file = tmp_path / "params.yaml"
            file.write_text(changed((PROJECT / "params.yaml").read_text(), values))
            params = load_params(file)
            assert params.finetune.epochs == 1  # the script's further options
            assert params.compare.labels


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_planted_rows_differ_from_the_wanted_ones_in_one_towns_good_deeds(tmp_path):
    commands(tmp_path, "harm.sh")
    folder = tmp_path / "data/harm"
    for split, count in (("train", 12 * 24 * 2), ("test", 4 * 24 * 2)):
        planted, wanted = (rows(folder / name / f"{split}.csv") for name in ("planted", "wanted"))
        assert len(planted) == len(wanted) == count
        assert [row["text"] for row in planted] == [row["text"] for row in wanted]
        apart = [(one, other) for one, other in zip(planted, wanted, strict=True) if one != other]
        assert len(apart) == count / 4
        assert {(one["town"], one["label"], other["label"]) for one, other in apart} == {("Norva", "rude", "kind")}
    pairs = rows(folder / "pairs.csv")
    assert {row["prompt"] for row in pairs} == {one["text"] for one, _ in apart}  # of the test's jobs
    assert {(row["wanted"], row["unwanted"]) for row in pairs} == {("kind", "rude")}
