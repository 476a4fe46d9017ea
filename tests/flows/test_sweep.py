import json
import subprocess

import pytest
from prefect.artifacts import Artifact

from flows.stage_run import DVC
from flows.sweep import main, table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

SCORED = """
stages:
  first:
    cmd: python toy.py first first.txt ${word} toy.py
    deps: [toy.py]
    outs: [first.txt]
  score:
    cmd: python toy.py score metrics.json '{"score":${rate},"seen":{"n":3}}'
    deps: [first.txt]
    metrics:
    - metrics.json: {cache: false}
"""


def test_a_grid_becomes_experiments_and_one_table_and_leaves_the_workspace_alone(git_toy, monkeypatch, capsys):
    git_toy.configure(graph=SCORED)
    (git_toy.root / "params.yaml").write_text("word: fine\nrate: 0.5\n")
    git_toy.commit()
    monkeypatch.chdir(git_toy.root)
    before = {path.name: path.read_bytes() for path in git_toy.root.iterdir() if path.is_file()}
    assert main(["--name", "try", "--set", "rate=[0.25, 0.75]", "--set", "word=[a-1, b]", "--side-by-side", "2"]) == 0
    assert {path.name: path.read_bytes() for path in git_toy.root.iterdir() if path.is_file()} == before

    rows = json.loads(Artifact.get("sweep").data)
    assert [(row["experiment"], row["rate"], row["word"], row["score"]) for row in rows] == [
        ("try-1", "0.25", '"a-1"', "0.25"),
        ("try-2", "0.25", '"b"', "0.25"),
        ("try-3", "0.75", '"a-1"', "0.75"),
        ("try-4", "0.75", '"b"', "0.75"),
    ]
    listed = subprocess.run([*DVC, "exp", "list", "--name-only"], capture_output=True, text=True, check=True)
    assert sorted(listed.stdout.split()) == ["try-1", "try-2", "try-3", "try-4"]
    capsys.readouterr()
    assert main(["--name", "try", "--set", "rate=[1]"]) == 2
    assert "error: an experiment of that name exists" in capsys.readouterr().err


def test_an_unknown_axis_is_refused_before_anything_runs(git_toy, monkeypatch, capsys):
    monkeypatch.chdir(git_toy.root)
    assert main(["--set", "wrod=[a, b]"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: wrod: unknown parameter; did you mean word?"


def test_a_failed_point_keeps_its_row():
    rows = table(
        {"s-1": {"a": 1}, "s-2": {"a": 2}}, {"s-1": {"score": {"x": 0.5}}}, {"s-2": "s-2: rows.csv: no column"}
    )
    assert rows.to_dict("records") == [
        {"experiment": "s-1", "a": "1", "outcome": "kept", "score.x": "0.5"},
        {"experiment": "s-2", "a": "2", "outcome": "failed", "score.x": ""},
    ]
