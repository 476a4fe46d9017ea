"""A small study in worker processes: stopped, resumed, widened, and what of it may fail."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from ruamel.yaml import YAML

from salf.errors import UserError
from stages.study import runner
from stages.study.__main__ import main
from stages.study.runner import Runner
from stages.study.tables import sole_writer
from tests.conftest import PROJECT, write_colours, write_params

DESCRIPTION = {
    "budget_hours": 1.0,
    "seeds": [1],
    "boundaries": [0, 0.5, 1],
    "learning_rates": {0: [0.001, 0.003], 0.5: [0.003]},
    "widen": 0,
    "methods": {},
    "common": {
        "data.source": "files",
        "data.template": "{text} is",
        "data.answer_column": "label",
        "data.group_column": None,
        "data.splits": {"train": "train", "validation": None, "test": None},
        "data.limits": {"train": 60, "validation": 12, "test": 24},
        "device.kind": "cpu",
        "device.dtype": "float32",
        "trace.sample": 16,
        "trace.losses": 8,
        "fit.bootstrap": 20,
        "finetune.epochs": 1,
        "evaluate.bootstrap": 20,
    },
    "models": {"tiny": {"layers": 4, "path": "tiny"}},
    "data_sets": {"colours": {"path": "colours.csv"}, "elsewhere": {"path": "not-there"}},
}
OUT_OF_RANGE = {"method": "lora", "set": {"finetune.lora_rank": 0}, "rates": [0.01]}


@pytest.fixture
def project(tmp_path, hub_folder, monkeypatch):
    """A project folder with the description of a small study, a dataset and a model beside it."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = tmp_path / "a project"
    root.mkdir()
    for name in ("dvc.yaml", "requirements.lock", "requirements-model.lock"):
        shutil.copy(PROJECT / name, root / name)
    write_params(root)
    describe(root, DESCRIPTION)
    (tmp_path / "data").mkdir()
    write_colours(tmp_path / "data/colours.csv", rows=120)
    shutil.copytree(hub_folder, tmp_path / "models/tiny")
    monkeypatch.chdir(root)
    return root


def describe(root, description):
    with (root / "study.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(description, file)


def study(*more):
    places = ["--description", "study.yaml", "--data", "../data", "--models", "../models", "--work", "../work"]
    return [*places, *more]


def rows(root, name="runs.csv"):
    path = root / "reports/study" / name
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_is_stopped_resumed_and_never_done_twice(project, capsys):
    main(study("--budget-hours", "1e-9"))  # models, data and first plans are finished, fine-tunes do not start
    assert rows(project) == []

    main(study())
    found = {row["method"]: row for row in rows(project)}
    assert set(found) == {"full", "freeze-2", "freeze-4"}
    assert found["full"]["rates"] == "0.001 0.003"
    assert found["freeze-4"]["rates"] == found["freeze-2"]["learning_rate"] == "0.003"
    assert int(found["freeze-4"]["flops"]) < int(found["freeze-2"]["flops"]) < int(found["full"]["flops"])
    outcomes = {float(row["learning_rate"]): row for row in rows(project, "rates.csv")}
    won = outcomes[float(found["full"]["learning_rate"])]
    assert (sorted(outcomes), won["point"]) == ([0.001, 0.003], found["full"]["point"])
    names = (("validation_loss",) * 2, ("test_loss", "loss"), ("test_accuracy", "quality"))
    assert all(won[name] == found["full"][column] for name, column in names)
    assert not list((project.parent / "work/jobs").iterdir())

    before = rows(project)
    capsys.readouterr()
    main(study())
    assert rows(project) == before
    told = capsys.readouterr().out
    assert "0 fine-tunes left" in told
    assert "left out: elsewhere: no " in told
    written = (project / "reports/study").rglob("*")
    assert str(project.parent) not in "".join(p.read_text() for p in written if p.suffix in {".csv", ".json"})

    main(["--analyse", "--resamples", "50"])
    summary = json.loads((project / "reports/study/summary.json").read_text())
    assert (summary["study"]["data_sets"], list(summary["methods"])) == (["colours"], ["full", "half"])

    describe(project, {**DESCRIPTION, "widen": 1})  # the best of two rates is at an edge: one more is tried
    main(study())
    (full,) = [row for row in rows(project) if row["method"] == "full"]
    beyond = {"0.001": "0.00033", "0.003": "0.009"}[found["full"]["learning_rate"]]
    assert full["rates"] == f"0.001 0.003 {beyond}"
    assert len(rows(project)) == len(before)
    assert len(rows(project, "rates.csv")) == 3


ARMS = {
    "full+answer": {"rates": [0.003], "budgets": ["epochs", "compute"]},
    "lora": {"rates": [0.01]},
    "race": {},
    "full-at-half-rate": {"method": "full", "rate_of": "half"},
    "half-at-full-rate": {"method": "half", "rate_of": "full"},
    "lora-2": {"method": "lora", "set": {"finetune.lora_rank": 2}, "rates": [0.01]},
    "half+lora": {"rates": [0.01]},
    "salf+lora": {"rates": [0.01]},
    "half-again": {
        "method": "half",
        "rate_of": "half",
        "set": {"finetune.keep": ["last", "mean"], "finetune.epochs": 3},  # of one epoch the last third is one step
        "texts": True,
    },
    "answer-again": {"method": "full+answer", "rate_of": "full+answer", "texts": True},
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kind_of_method_is_measured_and_what_it_forgot(project, capsys):
    (project.parent / "data/text.txt").write_text("the sky is blue and the grass is green . " * 20)
    texts = {"files": {"text": "text.txt"}, "blocks": 2, "tokens": 16}
    arms = {"race": {"arms": [{"method": "half", "learning_rate": [0.001, 0.003]}], "keep": 1}}
    data_sets = {"colours": {**DESCRIPTION["data_sets"]["colours"], "boundaries": [0, 0.5]}}
    common = {**DESCRIPTION["common"], **{f"race.{key}": value for key, value in arms["race"].items()}}
    described = {**DESCRIPTION, "common": common, "data_sets": data_sets}
    describe(project, described)
    main(study())
    describe(project, {**described, "methods": ARMS, "texts": texts})
    main(study())
    found = {(row["method"], row["budget"]): row for row in rows(project)}
    assert {method for method, _ in found} == {"full", "freeze-2", *ARMS}
    assert ("full+answer", "compute") in found
    for method, other in (("full-at-half-rate", "freeze-2"), ("half-at-full-rate", "full"), ("half-again", "freeze-2")):
        assert found[method, "epochs"]["learning_rate"] == found[other, "epochs"]["learning_rate"]
    sizes = {method: int(row["trained_parameters"]) for (method, _), row in found.items()}
    assert sizes["lora-2"] * 4 == sizes["lora"] == 2 * sizes["half+lora"]
    assert sizes["full-at-half-rate"] == sizes["full"] > sizes["half-at-full-rate"] == sizes["freeze-2"]
    kept = {row["keep"]: row for row in rows(project, "kept.csv")}
    last, mean = (float(kept[name]["test_loss"]) for name in ("last", "mean"))
    assert last == pytest.approx(float(found["half-again", "epochs"]["loss"]), rel=1e-9)
    assert mean != last
    scored = {row["method"]: row for row in rows(project, "forgetting.csv")}
    assert set(scored) == {"half-again", "answer-again"}
    assert len({row["before"] for row in scored.values()}) == 1
    assert len({row["after"] for row in scored.values()} | {scored["half-again"]["before"]}) == 3
    capsys.readouterr()
    main(study("--plan"))
    assert "13 fine-tunes finished, 0 fine-tunes left\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_fails_is_named_and_does_not_stop_the_others(project, capsys):
    describe(project, {**DESCRIPTION, "methods": {"odd": OUT_OF_RANGE}, "boundaries": [0, 1]})
    with pytest.raises(SystemExit) as ended:
        main(study())
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("error: colours, tiny, seed 1: odd at equal epochs: params.yaml: finetune.lora_rank = 0: ")
    assert "full" in {row["method"] for row in rows(project)}


@pytest.mark.slow
def test_other_data_are_prepared_again(project):
    main(study("--only-prepare"))
    main(study("--only-prepare"))
    work = project.parent / "work"
    assert len(list((work / "cases").iterdir())) == 1
    limits = {"data.limits": {"train": 30, "validation": 12, "test": 24}}
    describe(project, {**DESCRIPTION, "common": {**DESCRIPTION["common"], **limits}})
    main(study("--only-prepare"))
    made = sorted(json.loads(meta.read_text())["splits"]["train"]["rows"] for meta in work.glob("cases/*/*/meta.json"))
    assert made == [30, 60]
    assert len(list((work / "bases").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["--data-sets", "nothing"], "no dataset 'nothing' is described"),
        (["--description", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_a_study_that_cannot_be_done_is_refused(project, given, fault):
    with pytest.raises(UserError, match=fault):
        main(study(*given))
    assert not (project / "reports").exists()


@pytest.mark.parametrize("folder", ["--out", "--work"])
def test_two_do_not_write_the_same_tables(project, folder):
    held = project.parent / "held"
    with sole_writer(held), pytest.raises(UserError, match="held: another study is active there"):
        main(study(folder, str(held)))


def test_the_plan_of_a_study_runs_nothing(project, capsys):
    main(study("--plan"))
    assert "1 pairs of dataset and model, 0 fine-tunes finished, 3 fine-tunes left" in capsys.readouterr().out
    assert not (project.parent / "work").exists()


def test_a_reader_of_the_plan_that_has_seen_enough_costs_no_traceback(project):
    command = [sys.executable, "-m", "stages.study", *study("--plan")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""


def test_a_study_that_is_terminated_leaves_no_worker(project):
    command = [sys.executable, "-m", "stages.study", *study("--workers", "2")]
    running = psutil.Popen(command, stderr=subprocess.DEVNULL)
    workers = []
    while not [one for one in workers if "spawn_main" in " ".join(one.cmdline())]:
        assert running.is_running()
        time.sleep(0.1)
        workers = running.children()
    running.terminate()
    assert running.wait(60) == 143
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_a_bug_ends_it_at_once_with_its_traceback(project, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Runner, "_finish", broken)
    with pytest.raises(ZeroDivisionError):
        main(study("--only-prepare"))


MODULES = {
    "says": "import os, sys\nprint(*sys.argv[1:])\nprint(os.getpid(), file=open('pid', 'w'))\n",
    "refuses": "import sys\nprint('error: not so', file=sys.stderr)\nsys.exit(2)\n",
    "breaks": "1 / 0\n",
    "is_killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    folders = [tmp_path / "a job", tmp_path / "another"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_commands_run_in_their_folders_in_a_process_that_stays(folders):
    with runner._worker() as worker:

        def run(folder, *commands):
            return runner._fault(worker.submit(runner._run_commands, folder, [list(one) for one in commands]))

        for folder in folders:
            assert run(folder, ("says", "one"), ("says", "two", "three")) == ""
            assert (folder / "log").read_text().split() == ["one", "two", "three"]
        pids = {(folder / "pid").read_text() for folder in folders}
        assert len(pids) == 1
        assert pids != {str(os.getpid())}
        assert run(folders[0], ("refuses",), ("says", "never")) == "not so"
        assert "never" not in (folders[0] / "log").read_text()
        assert "ZeroDivisionError" in run(folders[0], ("breaks",))
        assert run(folders[0], ("says", "again")) == ""
        assert "was killed; if memory ran out: fewer --workers" in run(folders[0], ("is_killed",))
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN
