"""A whole small study through Prefect and DVC: stopped by its budget, killed, gone on with, finished, repeated."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from flows.study.__main__ import main
from flows.study.kept import object_cache, objects
from tests.flows.study.small import OUT_OF_RANGE, describe, git, rows, study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.usefixtures("prefect_server")]


def killed_when_something_is_kept(root):
    """The study in a process of its own, killed outright as soon as its first fine-tunes are kept."""
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    process = subprocess.Popen([sys.executable, "-m", "flows.study", *study()], cwd=root, env=environment)
    try:
        ends = time.monotonic() + 600
        while not rows(root) and time.monotonic() < ends and process.poll() is None:
            time.sleep(0.2)
        time.sleep(8)  # into the next experiment
    finally:
        process.kill()
        process.wait()
    return rows(root)


def test_a_study_is_stopped_killed_finished_and_never_done_twice(project, capsys):
    assert main(study("--budget-hours", "0.00001")) == 0  # the first experiment ends, the next does not begin
    assert len({row["rule"] for row in rows(project, "choices.csv")}) < 5
    assert rows(project) == []

    before = killed_when_something_is_kept(project)
    assert [row["method"] for row in before] == ["full", "freeze-2"]

    capsys.readouterr()
    assert main(study()) == 0
    after = rows(project)
    assert after[:2] == before  # kept as they were, seconds and all
    assert "0 fine-tunes left" in capsys.readouterr().out
    methods = [row["method"] for row in after]
    chosen = {row["rule"]: row for row in rows(project, "choices.csv")}
    boundaries = {int(row["boundary"]) for row in chosen.values() if row["boundary"]}
    assert sorted(methods) == sorted(
        {"full", "freeze-2", "freeze-4", *(f"freeze-{b}" if b else "full" for b in boundaries)}
    )
    assert chosen["half"]["boundary"] == "2"
    assert chosen["blind"]["boundary"] == ""
    assert chosen["blind"]["reason"]

    by_method = {row["method"]: row for row in after}
    assert by_method["full"]["rates"] == "0.001 0.003"
    assert by_method["freeze-4"]["rates"] == by_method["freeze-2"]["learning_rate"] == "0.003"
    assert (
        float(by_method["freeze-4"]["flops"])
        < float(by_method["freeze-2"]["flops"])
        < float(by_method["full"]["flops"])
    )

    outcomes = {float(row["learning_rate"]): row for row in rows(project, "rates.csv")}
    won = outcomes[float(by_method["full"]["learning_rate"])]
    assert sorted(outcomes) == [0.001, 0.003]
    assert {row["point"] for row in outcomes.values()} == {by_method["full"]["point"]}
    assert (won["validation_loss"], won["test_loss"], won["test_accuracy"]) == tuple(
        by_method["full"][name] for name in ("validation_loss", "loss", "quality")
    )
    assert all(float(row["test_loss"]) > 0 and 0 <= float(row["test_accuracy"]) <= 1 for row in outcomes.values())

    summary = json.loads((project / "reports/study/summary.json").read_text())
    assert summary["data_sets"] == ["colours"]
    assert {"half", "salf", "full"} <= set(summary["rules"])
    assert {one["source"] for one in summary["coverage"]} <= {"deviation", "loss"}

    files = {path: path.read_bytes() for path in (project / "reports/study").rglob("*") if path.is_file()}
    assert main(study()) == 0
    assert {path: path.read_bytes() for path in files} == files
    assert str(project.parent) not in "".join(
        content.decode(errors="replace") for path, content in files.items() if path.suffix in {".csv", ".json", ".svg"}
    )
    assert git(project, "status", "--porcelain").split() == ["??", "reports/study/"]
    assert git(project, "for-each-ref", "refs/exps").strip() == ""
    assert not [name for name in objects(object_cache(project)) if _is_trained(project, name)]

    elsewhere = project.parent / "clone"
    git(project, "clone", "-q", str(project), str(elsewhere))
    shutil.copytree(project / "reports/study", elsewhere / "reports/study")
    os.chdir(elsewhere)
    capsys.readouterr()
    assert main(study("--plan")) == 0
    told = capsys.readouterr().out
    assert f"{len(after)} fine-tunes there, 0 fine-tunes left" in told
    assert "left out: elsewhere: no " in told


def _is_trained(project: Path, name: str) -> bool:
    """Whether an object of the cache is a shard of weights that no base model has: those are dropped."""
    path = object_cache(project) / name[:2] / name[2:]
    if name.endswith(".dir"):
        return False
    return b'"format":"pt"' in path.read_bytes()[:4096] and name not in _base_names(project)


def _base_names(project: Path) -> set[str]:
    cache = object_cache(project)
    manifests = [json.loads((cache / n[:2] / n[2:]).read_text()) for n in objects(cache) if n.endswith(".dir")]
    return {
        entry["md5"]
        for manifest in manifests
        if any(e["relpath"] == "base.json" for e in manifest)
        for entry in manifest
    }


def test_a_study_that_cannot_be_done_is_refused_in_one_line(project, capsys):
    assert main(study("--data-sets", "nothing")) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: no data set 'nothing' is described")
    text = (project / "flows/study.yaml").read_text().replace("finetune.epochs", "finetune.epoch")
    (project / "flows/study.yaml").write_text(text)
    assert main(study()) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: finetune.epoch: unknown parameter; did you mean epochs?")
    assert main(study("--description", "none.yaml")) == 2


def test_an_experiment_that_fails_is_told_and_does_not_stop_the_others(project, capsys):
    describe(project, rules={"odd": OUT_OF_RANGE}, boundaries=[0, 1])
    assert main(study()) == 1
    assert "trace.batch_tokens" in capsys.readouterr().err.splitlines()[-1]
    assert "full" in {row["method"] for row in rows(project)}
