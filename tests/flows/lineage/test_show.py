import hashlib
import json
import shutil
import subprocess

import pytest

from flows.lineage.ledger import record_stage


def nodes(answer) -> dict[str, dict]:
    assert answer.status == 0, answer.err
    return {node["id"]: node for node in answer.json["nodes"]}


def inputs(node) -> dict[str, tuple[str, list[str]]]:
    return {given["path"]: (given["kind"], given["made_by"]) for given in node["inputs"]}


def test_metrics_are_traced_to_raw_data_and_to_every_run_on_the_way(ran, lineage):
    found = nodes(lineage(ran, "show", "metrics.json", "--json"))
    assert list(found) == ["judge", "train@1", "prepare", "train@2"]
    assert inputs(found["judge"]) == {"models": ("artifact", ["train@1", "train@2"]), "toystage": ("code", [])}
    assert inputs(found["train@2"])["data/prepared"] == ("artifact", ["prepare"])
    assert inputs(found["prepare"])["raw.txt"] == ("data", [])
    assert found["train@1"]["params"] == {"params.yaml": {"train": {"word": "fine"}}}
    commit = ran.git("rev-parse", "HEAD~1").strip()
    for node in found.values():
        run = node["run"]
        assert (run["commit"], run["dirty"], run["status"]) == (commit, False, 0)
        assert run["started"] < run["ended"]
        assert {"python", "torch", "transformers", "dvc"} <= set(run["versions"])
        assert run["machine"]["cores"] >= 1


def test_the_text_names_all_that_an_auditor_asks_for(ran, lineage):
    told = lineage(ran, "show", "models/seed1").out
    digest = hashlib.md5((ran.root / "models/seed1").read_bytes()).hexdigest()
    assert told.startswith(f"asked: models/seed1\npath: models/seed1\nname: {digest}\n")
    for word in ("command", "params", "run", "started", "commit", "flow_run", "versions", "machine", "raw.txt"):
        assert word in told


def test_a_dirty_tree_and_a_flow_run_are_told(project, lineage):
    (project.root / "raw.txt").write_text("edited")
    project.dvc("repro", "prepare", environment={"SALF_FLOW_RUN": "id-1", "SALF_FLOW_RUN_NAME": "red-fox"})
    record_stage(project.root, "prepare", "ran", "id-1")
    told = lineage(project, "show", "prepare").out
    assert "dirty: true" in told
    assert "flow_run: id-1" in told
    assert "flow_run_name: red-fox" in told


def test_a_folder_found_elsewhere_is_known_by_its_content(ran, lineage, tmp_path):
    elsewhere = tmp_path / "found"
    shutil.copytree(ran.root / "data/prepared", elsewhere)
    answer = lineage(ran, "show", str(elsewhere), "--json")
    assert list(nodes(answer)) == ["prepare"]
    assert answer.json["path"] == "data/prepared"
    (elsewhere / "one").write_text("edited")
    answer = lineage(ran, "show", str(elsewhere))
    assert answer.status == 1
    assert "not in dvc.lock, the ledger or any commit" in answer.err


def test_a_file_in_a_folder_is_known_by_path_and_by_hash(ran, lineage):
    file = ran.root / "data/prepared/two"
    by_path = lineage(ran, "show", str(file), "--json")
    assert by_path.json["path"] == "data/prepared/two"
    digest = subprocess.run(["md5sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    for asked in (digest, digest[:8], hashlib.sha256(file.read_bytes()).hexdigest()):
        answer = lineage(ran, "show", asked, "--json")
        assert answer.json["path"] == "data/prepared/two"
        assert list(nodes(answer)) == ["prepare"]


def test_what_an_earlier_run_made_is_still_known(ran, lineage):
    old = (ran.root / "models/seed1").read_bytes()
    ran.params(train="other")
    ran.dvc("repro")
    found = nodes(lineage(ran, "show", hashlib.md5(old).hexdigest(), "--json"))
    (first,) = [node for key, node in found.items() if key.startswith("train")]
    assert first["params"]["params.yaml"]["train"]["word"] == "fine"
    assert first["source"].startswith("record ")
    ran.ledger.unlink()
    found = nodes(lineage(ran, "show", hashlib.md5(old).hexdigest(), "--json"))
    (first,) = [node for key, node in found.items() if key.startswith("train")]
    assert first["source"] == f"commit {ran.git('rev-parse', 'HEAD').strip()[:12]}"
    assert first["run"] is None


def test_an_edited_artifact_is_not_taken_for_the_one_that_was_made(ran, lineage):
    (ran.root / "metrics.json").write_text("{}")
    answer = lineage(ran, "show", "metrics.json")
    assert answer.status == 1
    assert "it was changed since its stage made it" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_a_lost_artifact_is_known_by_its_path(ran, lineage):
    (ran.root / "models/seed1").unlink()
    answer = lineage(ran, "show", "models/seed1")
    assert answer.status == 0
    assert "dvc pull brings it" in answer.out


def test_a_base_model_says_where_it_came_from(project, lineage):
    folder = project.root / "data/base"
    folder.mkdir(parents=True)
    facts = {"name": "toy", "origin": "PyPI toy 1.0", "weights_sha256": "ab" * 32}
    (folder / "base.json").write_text(json.dumps(facts))
    (project.root / "dvc.yaml").write_text("stages:\n  base: {cmd: echo, outs: [data/base]}\n")
    project.dvc("commit", "--force")
    for asked in ("base", "ab" * 32):
        assert "origin: PyPI toy 1.0, " in lineage(project, "show", asked).out


@pytest.mark.parametrize("asked", ["no-such-thing", "00ff00ff00ff"])
def test_what_is_not_known_is_one_line(ran, lineage, asked):
    answer = lineage(ran, "show", asked)
    assert answer.status == 1
    assert answer.err.startswith((f"error: {asked}: not a stage that ran", f"error: {asked}: unknown hash"))
    assert len(answer.err.splitlines()) == 1
