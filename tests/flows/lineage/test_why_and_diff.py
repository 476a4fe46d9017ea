import json
import subprocess
import sys

import pytest

from flows.lineage.ledger import record_all
from tests.stage_sources import ROOT


def test_a_stage_that_is_up_to_date_says_so(ran, lineage):
    answer = lineage(ran, "why", "judge")
    assert answer.status == 0
    assert answer.lines[-1] == "nothing changed: judge is up to date"
    assert ran.git("rev-parse", "HEAD~1").strip() in answer.lines[0]


def test_why_names_parameters_code_inputs_outputs_and_what_lies_above(ran, lineage):
    (ran.root / "raw.txt").write_text("rawer")
    ran.params(train="other")
    (ran.root / "toystage/helper.py").write_text("")
    (ran.root / "models/seed1").unlink()
    told = lineage(ran, "why", "train@1", "--json").json
    assert 'parameter train.word: was "fine", is "other"' in told["changes"]
    assert any(line.endswith("A toystage/helper.py") for line in told["changes"])
    assert any(line.startswith("output models/seed1: is gone, was ") for line in told["changes"])
    assert list(told["upstream"]) == ["prepare"]
    assert any(line.startswith("input raw.txt: was ") for line in told["upstream"]["prepare"])


def test_why_agrees_with_dvc_on_which_stages_changed(ran, lineage):
    ran.params(train="other")
    stale = set(json.loads(ran.dvc("status", "--json")))
    assert stale == {"train@1", "train@2"}
    for stage in ("prepare", "train@1", "train@2", "judge"):
        assert bool(lineage(ran, "why", stage, "--json").json["changes"]) == (stage in stale)


def test_a_renamed_parameter_is_one_gone_and_one_new(ran, lineage):
    params = ran.root / "params.yaml"
    params.write_text(params.read_text().replace("train: {word: fine}", "train: {term: fine}"))
    graph = ran.root / "dvc.yaml"
    graph.write_text(graph.read_text().replace("train.word", "train.term"))
    changes = lineage(ran, "why", "train@1", "--json").json["changes"]
    assert 'parameter train.term: is new: "fine"' in changes
    assert 'parameter train.word: is gone, was "fine"' in changes


def test_a_changed_command_and_a_failed_run_are_told(ran, lineage):
    ran.params(prepare="bad")
    ran.dvc("repro", "prepare", check=False)
    told = lineage(ran, "why", "prepare").out
    assert "failed (exit 2)" in told
    assert "command: was `python -m toystage fine" in told


def test_a_stage_that_never_ran_and_one_that_does_not_exist(project, lineage):
    assert "it never ran to its end here" in lineage(project, "why", "prepare").lines
    answer = lineage(project, "why", "prepar")
    assert answer.status == 1
    assert answer.err.startswith("error: no stage 'prepar' in dvc.yaml; there are: prepare, ")


def test_plans_are_compared_through_the_cache(project, lineage):
    (project.root / "dvc.yaml").write_text("stages:\n  plan: {cmd: echo, outs: [data/plan]}\n")
    plan = project.root / "data/plan/freeze_plan.json"
    plan.parent.mkdir(parents=True)
    for boundary in (12, 20):
        plan.unlink(missing_ok=True)
        plan.write_text(json.dumps({"boundary": boundary, "model": {"layers": 30}}))
        project.dvc("commit", "--force")
        project.commit(f"boundary {boundary}")
    plan.unlink()
    head = project.git("rev-parse", "HEAD").strip()
    told = lineage(project, "diff", "HEAD~1", "HEAD", "--json").json
    assert told["plans"] == ["plan boundary: was 12, is 20"]
    assert told["to"] == {"name": "HEAD", "commit": head}
    assert lineage(project, "diff", "HEAD", "HEAD").out == "the plans of HEAD and HEAD do not differ\n"
    plan.write_text("{")
    answer = lineage(project, "diff", "HEAD")
    assert answer.status == 2
    assert answer.err.startswith("error: data/plan/freeze_plan.json: damaged JSON: ")


@pytest.mark.slow
def test_experiments_are_compared_by_name(project, lineage):
    project.git("config", "user.name", "Zoë")  # DVC copies it into an experiment's folder, as it does the cache's path
    project.dvc("repro", "prepare")
    record_all(project.root)
    project.commit("ran")
    for name in ("red", "blue"):
        project.apart("--name", name, "--set-param", f"prepare.word={name}", "prepare")
    told = lineage(project, "diff", "red", "blue", "--json").json
    assert told["from"]["commit"] != told["to"]["commit"]
    assert told["plans"] == []
    answer = lineage(project, "diff", "red", "green")
    assert answer.status == 1
    assert answer.err.startswith("error: no commit, branch, tag or experiment 'green': ")


def test_help_shows_examples_and_bad_usage_ends_with_2():
    command = [sys.executable, "-m", "flows.lineage"]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0
    for name in ("show", "why", "verify", "diff", "record", "head"):
        assert f"python -m flows.lineage {name}" in told.stdout.partition("examples:")[2]
    wrong = subprocess.run([*command, "shwo", "x"], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_an_empty_ledger_has_no_head(project, lineage):
    answer = lineage(project, "head")
    assert (answer.status, answer.err) == (1, "error: the ledger is empty: DVC has run no stage here\n")
    assert lineage(project, "verify").status == 0
    assert lineage(project, "record").out == "recorded: nothing new\n"
