import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows.lineage.ledger import record_all
from flows.lineage.project import Hasher
from flows.lineage.verify import check_shards
from salf.engine.models.shards import shard_hashes, share_file, write_tensors


def rewrite(file: Path, content: bytes) -> None:
    """Change a file by the name alone: a link into the cache is cut first."""
    file.unlink()
    file.write_bytes(content)


def objects(project) -> dict[str, Path]:
    folder = project.root / ".dvc/cache/files/md5"
    return {file.parent.name + file.name: file for file in folder.glob("??/*")}


def mismatches(answer) -> list[str]:
    return [line for line in answer.lines if not line.startswith(("note: ", "checked "))]


def test_a_project_that_ran_is_what_was_made(ran, lineage):
    answer = lineage(ran, "verify")
    assert (answer.status, mismatches(answer)) == (0, [])
    assert answer.lines == ["checked 12 records, 4 stages, 4 artifacts, 4 cache objects: everything matches its record"]
    told = lineage(ran, "verify", "--json").json
    assert (told["ok"], told["mismatches"], told["head"]["seq"]) == (True, [], 12)


def test_an_edited_artifact_is_one_line_and_dvc_agrees(ran, lineage):
    rewrite(ran.root / "data/prepared/one", b"by hand")
    answer = lineage(ran, "verify")
    assert answer.status == 1
    (line,) = mismatches(answer)
    assert line.startswith("artifact: data/prepared: is not what prepare made: it differs in one; dvc.lock says ")
    assert "data/prepared" in ran.dvc("status", "--json")


def test_an_edit_that_dvc_does_not_see_is_found(ran, lineage):
    file = ran.root / "models/seed1"
    before = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as opened:  # in place, the same size and time, through the link into the cache
        opened.write(b"F")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    lines = mismatches(lineage(ran, "verify"))
    assert any(line.startswith("artifact: models/seed1: ") for line in lines)


def test_a_lost_artifact_and_a_lost_cache_object_are_found(ran, lineage):
    (ran.root / "models/seed1").unlink()
    rewritten = hashlib.md5((ran.root / "data/prepared/two").read_bytes()).hexdigest()
    objects(ran)[rewritten].unlink()
    answer = lineage(ran, "verify")
    assert answer.status == 1
    assert sorted(mismatches(answer)) == [
        "artifact: models/seed1: is not in the workspace (train@1 made it)",
        f"cache: {rewritten}: is missing (dvc pull, or run its stage again)",
    ]


@pytest.mark.parametrize("folder", [False, True])
def test_a_corrupt_cache_object_is_found(ran, lineage, folder):
    name, file = next(item for item in objects(ran).items() if item[0].endswith(".dir") == folder)
    rewrite(file, b"rot")
    answer = lineage(ran, "verify")
    assert answer.status == 1
    bytes_now = subprocess.run(["md5sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert f"cache: {name}: is corrupt: its bytes are {bytes_now}; the next run makes it again" in mismatches(answer)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("md5: {models/seed1}", "md5: feed0000000000000000000000000000"),
        ("size: 3", "size: 4"),
        ("word: fine", "word: wine"),
        ("cmd: python -m toystage fine models/seed1", "cmd: python -m toystage wine models/seed1"),
    ],
    ids=["output's hash", "input's size", "parameter", "command"],
)
def test_a_lock_that_was_edited_by_hand_is_found(ran, lineage, old, new):
    lock = ran.root / "dvc.lock"
    digest = hashlib.md5((ran.root / "models/seed1").read_bytes()).hexdigest()
    content = lock.read_text()
    changed = content.replace(old.replace("{models/seed1}", digest), new)
    assert changed != content
    lock.write_text(changed)
    answer = lineage(ran, "verify")
    assert answer.status == 1
    assert any(line.startswith("lock: ") for line in mismatches(answer))


def test_an_edit_that_was_committed_to_dvc_is_found_even_after_it_was_recorded(ran, lineage):
    rewrite(ran.root / "data/prepared/one", b"by hand")
    ran.dvc("commit", "--force", "prepare")
    for _ in range(2):
        answer = lineage(ran, "verify")
        assert answer.status == 1
        assert any("lock: prepare: outputs differ from record" in line for line in mismatches(answer))
        assert record_all(ran.root) in (["prepare"], [])
    assert not any(line.startswith("lock: ") for line in mismatches(lineage(ran, "verify", "--accept", "prepare")))


def test_a_run_that_is_not_recorded_yet_is_a_note(ran, lineage):
    ran.params(train="other")
    ran.dvc("repro")
    answer = lineage(ran, "verify")
    assert (answer.status, mismatches(answer)) == (0, [])
    assert "note: train@1 ran, and is not recorded yet: python -m flows.lineage record" in answer.lines


@pytest.mark.slow
def test_what_dvc_restored_without_a_flow_is_no_mismatch(ran, lineage):
    ran.params(train="other")
    ran.dvc("repro")
    record_all(ran.root)
    ran.params()
    assert "is cached" in ran.dvc("repro", "train")
    assert not [line for line in mismatches(lineage(ran, "verify")) if line.startswith("lock: ")]


def test_changed_code_data_and_parameters_are_stale(ran, lineage):
    (ran.root / "raw.txt").write_text("rawer")
    ran.params(train="other")
    answer = lineage(ran, "verify")
    assert answer.status == 1
    lines = mismatches(answer)
    assert 'stale: train@1: parameter train.word: was "fine", is "other" since it ran' in lines
    assert any(line.startswith("stale: prepare: input raw.txt: was ") for line in lines)


def test_a_changed_record_and_a_cut_ledger_are_found(ran, lineage):
    noted = lineage(ran, "head").out.split()[1]
    for given in (noted, noted[:8], noted.upper(), f"12 {noted}"):
        assert lineage(ran, "verify", "--head", given).status == 0
    for given in ("", noted[:7], "12"):
        with pytest.raises(SystemExit, match="2"):
            lineage(ran, "verify", "--head", given)
    content = ran.ledger.read_bytes()
    ran.ledger.write_bytes(b"".join(content.splitlines(keepends=True)[:-4]))
    answer = lineage(ran, "verify", "--head", noted)
    assert answer.status == 1
    assert any("the ledger was truncated" in line for line in mismatches(answer))
    ran.ledger.write_bytes(content.replace(b'"dirty":false', b'"dirty":true ', 1))
    answer = lineage(ran, "verify")
    assert answer.status == 1
    assert mismatches(answer) == [
        "ledger: records.jsonl line 2: does not follow from the line before it: one of the two was changed"
    ]


def test_an_edited_newest_record_and_a_cut_are_found_without_a_hash_noted_elsewhere(ran, lineage):
    content = ran.ledger.read_bytes()
    *older, newest = content.splitlines(keepends=True)
    for number, tampered in enumerate([[*older, newest.replace(b'"at":"2', b'"at":"1')], older]):
        ran.ledger.write_bytes(b"".join(tampered))
        answer = lineage(ran, "verify")
        assert answer.status == 1
        line = f"ledger: records.jsonl line {len(older) + 1 - number}: records.head names another last record"
        assert any(found.startswith(line) for found in mismatches(answer))
    ran.ledger.write_bytes(content)
    assert lineage(ran, "verify").status == 0


def test_a_killed_run_is_a_note(ran, lineage):
    ran.ledger.with_suffix(".head").unlink()
    lines = ran.ledger.read_bytes().splitlines(keepends=True)
    ran.ledger.write_bytes(lines[0])
    assert any("was killed, or is still active" in line for line in lineage(ran, "verify").lines)


@pytest.mark.slow
def test_a_fresh_clone_without_records_is_as_committed(ran, lineage, tmp_path):
    clone = type(ran).at(tmp_path / "clone")
    subprocess.run(["git", "clone", "--quiet", ran.root, clone.root], check=True)
    ran.dvc("remote", "add", "--default", "--local", "there", str(tmp_path / "remote"))
    ran.dvc("push")
    clone.dvc("remote", "add", "--default", "--local", "there", str(tmp_path / "remote"))
    clone.dvc("pull")
    answer = lineage(clone, "verify")
    assert (answer.status, mismatches(answer)) == (0, []), answer.out
    assert "note: train@1: its origin is not recorded here; dvc.lock is as committed" in answer.lines


def test_what_a_stage_made_that_is_no_more_may_be_thrown_away(ran, lineage):
    ran.params(seeds="[1]")
    (ran.root / "models/seed2").unlink()
    ran.dvc("repro")
    record_all(ran.root)
    answer = lineage(ran, "verify")
    assert (answer.status, mismatches(answer)) == (0, [])
    assert "note: train@2 is in dvc.lock and no longer in dvc.yaml" in answer.lines
    (_, models) = lineage(ran, "show", "judge", "--json").json["nodes"][0]["inputs"][::-1]
    assert models["made_by"] == ["train@1"]


def test_data_beside_the_project_and_links_into_the_cache_are_followed(project, lineage):
    (project.root.parent / "beside").mkdir()
    (project.root.parent / "beside/raw.txt").write_text("raw")
    graph = "stages:\n  prepare: {cmd: echo made > made.txt, deps: [../beside], outs: [made.txt]}\n"
    (project.root / "dvc.yaml").write_text(graph)
    project.dvc("config", "cache.type", "symlink")
    project.dvc("repro")
    assert (project.root / "made.txt").is_symlink()
    record_all(project.root)
    assert lineage(project, "verify").status == 0
    assert lineage(project, "show", str(project.root / "made.txt"), "--json").json["path"] == "made.txt"
    (project.root.parent / "beside/more.txt").write_text("more")
    assert mismatches(lineage(project, "verify"))[0].startswith("stale: prepare: input ../beside: was ")


def test_data_under_dvc_add_is_verified_too(ran, lineage):
    (ran.root / "more.csv").write_text("a,b\n")
    ran.dvc("add", "more.csv")
    assert lineage(ran, "verify").status == 0
    rewrite(ran.root / "more.csv", b"a,c\n")
    answer = lineage(ran, "verify")
    assert answer.status == 1
    assert mismatches(answer)[0].startswith("artifact: more.csv: is not what more.csv.dvc made")


def tensors(seed: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((4,), seed)}


def write_base(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, unit in enumerate(["embedding", "layer-01", "layer-02", "layer-03", "final"]):
        write_tensors(folder / f"{unit}.safetensors", tensors(number))
    (folder / "config.json").write_text("{}")
    (folder / "base.json").write_text('{"name": "toy"}')


def write_fine_tune(folder: Path, base: Path, changed: list[str]) -> None:
    folder.mkdir(parents=True)
    for shard in base.glob("*.safetensors"):
        if shard.stem in changed:
            write_tensors(folder / shard.name, tensors(10 + len(shard.stem)))
        else:
            share_file(shard, folder / shard.name)
    (folder / "config.json").write_text("{}")
    run = {"trained_units": changed, "changed_units": changed, "shards": shard_hashes(folder)}
    (folder / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    "changed",
    [
        ["layer-03", "final"],
        ["embedding", "layer-01", "layer-02", "layer-03", "final"],
        ["layer-02", "layer-03"],  # adapters
        ["embedding", "layer-01", "layer-02"],  # the first layers
        ["embedding", "layer-01", "layer-03", "final"],  # layers that were drawn
        ["final"],
    ],
)
def test_frozen_shards_are_the_bases_and_trained_ones_are_not(tmp_path, changed):
    write_base(tmp_path / "base")
    write_fine_tune(tmp_path / "model", tmp_path / "base", changed)
    for unit in ["embedding", "layer-01", "layer-02", "layer-03", "final"]:
        files = [tmp_path / folder / f"{unit}.safetensors" for folder in ("base", "model")]
        assert subprocess.run(["cmp", "--silent", *files]).returncode == (unit in changed)
    assert check_shards(tmp_path / "model", tmp_path / "base", Hasher()) == []


def test_a_record_that_does_not_say_what_trained_proves_nothing(tmp_path):
    write_base(tmp_path / "base")
    write_fine_tune(tmp_path / "model", tmp_path / "base", ["final"])
    (tmp_path / "model/run.json").write_text('{"boundary": 3, "changed_units": ["final"]}')
    (wrong,) = check_shards(tmp_path / "model", tmp_path / "base", Hasher())
    assert "the frozen layers are unknown" in wrong


MODELS = """
stages:
  base: {cmd: echo, outs: [data/base]}
  finetune: {cmd: echo, deps: [data/base], outs: [data/models/salf]}
"""


@pytest.fixture
def models(project):
    """A base and a fine-tune of it (layers 1 and 2 frozen) that DVC knows."""
    (project.root / "dvc.yaml").write_text(MODELS)
    write_base(project.root / "data/base")
    write_fine_tune(project.root / "data/models/salf", project.root / "data/base", ["layer-03", "final"])
    project.dvc("commit", "--force")
    record_all(project.root)
    return project


def test_a_fine_tune_is_proved_from_its_shards(models, lineage):
    told = lineage(models, "verify", "--json").json
    assert told["ok"], told
    assert told["checked"]["fine-tunes against their base"] == 1


@pytest.mark.parametrize(
    ("unit", "content", "wrong"),
    [
        ("layer-02", "other", "layer-02 was frozen, but its bytes differ from the base's"),
        ("layer-03", "base", "layer-03 was trained, but its bytes equal the base's"),
    ],
)
def test_a_fine_tune_whose_shards_do_not_fit_is_found_though_every_lock_agrees(models, lineage, unit, content, wrong):
    shard = models.root / f"data/models/salf/{unit}.safetensors"
    same = (models.root / f"data/base/{unit}.safetensors").read_bytes()
    rewrite(shard, same if content == "base" else same[:-1] + b"\x01")
    models.dvc("commit", "--force")
    record_all(models.root)
    answer = lineage(models, "verify")
    assert answer.status == 1
    assert f"shards: data/models/salf: {wrong}" in mismatches(answer)


def test_a_model_that_no_lock_knows_is_found_and_an_earlier_one_is_known(models, lineage):
    stranger = models.root / "data/models/stranger"
    write_fine_tune(stranger, models.root / "data/base", ["layer-02", "layer-03", "final"])
    answer = lineage(models, "verify")
    assert answer.status == 1
    (line,) = mismatches(answer)
    assert line.startswith("unknown model: data/models/stranger: unknown hash ")
    (models.root / "dvc.yaml").write_text(MODELS.replace("data/models/salf", "data/models/other"))
    (models.root / "data/models/stranger").rename(models.root / "data/models/other")
    models.dvc("commit", "--force")
    record_all(models.root)
    answer = lineage(models, "verify")
    assert "note: data/models/salf: a model of an earlier run, known by its hash" in answer.lines
    assert not any(line.startswith("unknown model") for line in answer.lines)


def test_bad_usage_is_one_line(tmp_path, capsys):
    code = "import sys; from flows.lineage.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "verify", "--project", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
