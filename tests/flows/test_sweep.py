import json
import subprocess

import pytest
from prefect.artifacts import Artifact

from flows.overrides import loaded
from flows.stage_run import DVC
from flows.sweep import main, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("prefect_server")]

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
    assert main(["--name", "try", "--set", "rate=[0.25, 0.75]", "--set", "word=[a-1, b]"]) == 0
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
    for other in (["rate=[1]"], ["rate=[0.25, 0.75]", "--set", "word=[a-1, b, c]"]):  # whose try-3 is another
        assert main(["--name", "try", "--set", *other]) == 2
        assert "error: an experiment of that name exists, with other parameters" in capsys.readouterr().err

    before = commits_of_experiments()
    subprocess.run([*DVC, "exp", "remove", "try-2"], check=True)  # as if the sweep had been killed before it
    assert main(["--name", "try", "--set", "rate=[0.25, 0.75]", "--set", "word=[a-1, b]"]) == 0
    after = commits_of_experiments()
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {"try-2"}
    assert json.loads(Artifact.get("sweep").data) == rows


SCORES = {
    "schema": 1,
    "task": "classification",
    "quality": "accuracy",
    "intervals": {"resamples": 20, "confidence": 0.9},
    "baselines": {},
    "runs": {},
    "methods": {
        # A list, which DVC leaves out of what it shows.
        "full": {"seeds": [1], "accuracy": "RATE", "accuracy_low": 0, "accuracy_high": 1}
        | dict.fromkeys(("flops", "epochs", "steps", "trained_parameters", "boundary"), 1)
    },
}


def test_a_table_has_the_measures_of_every_point(git_toy, monkeypatch, capsys):
    written = json.dumps(SCORES, separators=(",", ":")).replace('"RATE"', "${rate}")
    git_toy.configure(graph=SCORED.replace('{"score":${rate},"seen":{"n":3}}', written))
    (git_toy.root / "params.yaml").write_text("word: fine\nrate: 0.5\n")
    git_toy.commit()
    monkeypatch.chdir(git_toy.root)
    assert main(["--set", "rate=[0.25, 0.75]", "--set", "word=fine", "--table", "table.csv"]) == 0, capsys.readouterr()
    assert (git_toy.root / "table.csv").read_text() == (
        "experiment,rate,panel,model,measure,value,low,high\n"
        "sweep-1,0.25,test,full,accuracy,0.25,0.0,1.0\n"
        "sweep-2,0.75,test,full,accuracy,0.75,0.0,1.0\n"
    )


def commits_of_experiments() -> dict[str, str]:
    listed = ["git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps/*/*/*"]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name.rpartition("/")[2]: commit for name, commit in map(str.split, lines)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "wrod=[a, b]"], "error: wrod: unknown parameter; did you mean word?"),
        (["--name", "a b", "--set", "word=[x]"], "error: name: "),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(git_toy, monkeypatch, capsys, words, message):
    monkeypatch.chdir(git_toy.root)
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert git_toy.calls("first") == 0


@pytest.fixture
def reading(git_toy, monkeypatch):
    """A project whose first stage reads ``data.path``; its second is not reached."""
    graph = SCORED.replace("${word} toy.py", "fine ${data.path}").replace("[toy.py]", "['${data.path}']")
    git_toy.configure(graph=graph.replace("metrics:\n    - metrics.json: {cache: false}", "outs: [metrics.json]"))
    monkeypatch.chdir(git_toy.root)
    return git_toy


def path_of(toy, path: str) -> None:
    (toy.root / "params.yaml").write_text(f"data: {{template: x, path: {path}}}\nrate: 1\n")
    toy.commit()


def test_a_point_has_its_text_and_a_file_outside_the_project_and_applies_after_an_early_end(reading, capsys):
    (reading.root.parent / "rows.csv").write_text("rows")
    path_of(reading, "../rows.csv")
    text = 'Größe "{x}"\\n\r\n${y}\n'
    assert main(["--name", "try", "--targets", "first", "--set", f"data.template=[{json.dumps(text)}]"]) == 0
    assert "experiments: try-1" in capsys.readouterr().out
    applied = subprocess.run([*DVC, "exp", "apply", "try-1"], capture_output=True, text=True, check=False)
    assert (applied.returncode, "missing-files" in applied.stderr) == (255, True)  # the stage that never ran
    params = loaded((reading.root / "params.yaml").read_text(encoding="utf-8"))
    assert params["data"] == {"path": str(reading.root.parent / "rows.csv"), "template": text}
    assert (reading.root / "first.txt").read_text() == "finerows"


@pytest.mark.parametrize("path", ["rows.csv", "toy.py, also: x}\nevaluate: {pairs: rows.csv"])
def test_a_file_that_git_does_not_know_is_refused_before_the_first_point(reading, capsys, path):
    path_of(reading, path)
    (reading.root / "rows.csv").write_text("rows")
    assert main(["--set", "rate=[1, 2]"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: not in git: rows.csv; ")
    assert "git add" in last
    assert reading.calls("first") == 0
    assert not subprocess.run([*DVC, "exp", "list", "--name-only"], capture_output=True, check=True).stdout


def test_a_failed_point_keeps_its_row_and_scalar_metrics_are_shown_in_six_digits():
    metrics = {"s-1": {"score": {"x": 0.123456789, "n": 240}, "curve": [1, 2]}}
    rows = table({"s-1": {"a": 1}, "s-2": {"a": 2}}, metrics, {"s-2": "s-2: rows.csv: no column"})
    assert rows.to_dict("records") == [
        {"experiment": "s-1", "a": "1", "outcome": "kept", "score.x": "0.123457", "score.n": "240"},
        {"experiment": "s-2", "a": "2", "outcome": "failed", "score.x": "", "score.n": ""},
    ]
