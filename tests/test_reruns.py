"""A change re-runs the stages that depend on it and no other: the real dvc.yaml under the real DVC.

The stages' programs are replaced by a stand-in whose outputs change with anything that the stage may
read, so that every re-run that the graph allows takes place.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import networkx as nx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.stage_sources import ROOT, room_of

pytestmark = pytest.mark.chain

YAML_FILE = YAML()
ORDER = ["base", "prepare", "signals", "trace", "fit", "plan", "finetune", "evaluate", "report"]
BESIDE = {"signals": {"trace", "fit"}}  # what stands behind a stage in this order and does not read it
METHODS = ["full", "salf+lora"]


def after(stage: str) -> set[str]:
    """The stage and all that follow it, fine-tunes by their items."""
    rest = [each for each in ORDER[ORDER.index(stage) :] if each not in BESIDE.get(stage, ())]
    items = {f"finetune@{method}-1" for method in METHODS} if "finetune" in rest else set()
    return items | set(rest) - {"finetune"}


class Copy:
    """A copy of the project in which ``python`` is the stand-in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("dvc.yaml", "params.yaml", "requirements.lock", ".dvcignore"):
            shutil.copy(ROOT / name, root / name)
        for room in ("salf", "stages"):
            shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "data/raw").mkdir(parents=True)
        (root / "data/raw/README.md").write_text("data\n")
        # Files of a stage's folder that other stages name one by one, and one that none names.
        deps = [dep for stage in YAML_FILE.load(root / "dvc.yaml")["stages"].values() for dep in stage["deps"]]
        self.files = {Path(dep).name for dep in deps if dep.startswith("data/") and Path(dep).suffix} | {"data.bin"}
        self.change("compare.methods", METHODS)
        self.change("compare.seeds", [1])
        Repo.init(str(root), no_scm=True).close()
        config = (ROOT / ".dvc/config").read_text(encoding="utf-8")
        (root / ".dvc/config").write_text(config.replace("[core]", "[core]\n    no_scm = true"), encoding="utf-8")

    def change(self, key: str, value) -> None:
        """Set a parameter, and tell the stand-in what each stage's Room now sees."""
        path = self.root / "params.yaml"
        params = YAML_FILE.load(path.read_text(encoding="utf-8"))
        *groups, name = key.split(".")
        place = params
        for group in groups:
            place = place[group]
        assert place[name] != value or key.startswith("compare.")
        place[name] = value
        with path.open("w", encoding="utf-8") as file:
            YAML_FILE.dump(params, file)
        rooms = {stage: sorted(room_of(stage).model_fields) for stage in ORDER}
        groups = {stage: {name: params[name] for name in names} for stage, names in rooms.items()}
        (self.root / "seen.json").write_text(json.dumps({"groups": groups, "files": sorted(self.files)}))

    def get(self, key: str):
        """A parameter's present value."""
        value = YAML_FILE.load((self.root / "params.yaml").read_text(encoding="utf-8"))
        for name in key.split("."):
            value = value[name]
        return value

    def stale(self) -> set[str]:
        """The stages of which DVC says that something they read has changed."""
        with Repo(str(self.root)) as repo:
            return set(repo.status())

    def with_followers(self, names: set[str]) -> set[str]:
        """These stages and all that follow them in DVC's graph."""
        return names.union(*(nx.ancestors(self.graph, name) for name in names))  # edges point at what is read

    @cached_property
    def graph(self) -> nx.DiGraph:
        """DVC's graph, by the stages' names, as it was when first asked for."""
        with Repo(str(self.root)) as repo:
            return nx.relabel_nodes(repo.index.graph, {stage: stage.name for stage in repo.index.graph})

    def repro(self) -> set[str]:
        """Bring everything up to date and return the stages whose programs DVC started."""
        calls = self.root / "calls.txt"
        calls.unlink(missing_ok=True)
        # A process of its own: coverage's tracer makes DVC's YAML reading several times slower.
        subprocess.run([sys.executable, "-c", "from dvc.repo import Repo; Repo().reproduce()"], check=True)
        started = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
        return {_name(call.split()) for call in started}


def _name(call: list[str]) -> str:
    stage = call[0].removeprefix("stages.")
    if stage != "finetune":
        return stage
    name, option = ("variant", "--variant") if "--variant" in call else ("finetune", "--method")
    return f"{name}@{call[call.index(option) + 1]}-{call[call.index('--seed') + 1]}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Copy:
    """A copy of the project in which the whole chain has run once."""
    root = tmp_path_factory.mktemp("chain")
    copy = Copy(root)
    with pytest.MonkeyPatch.context() as patch:
        use_standin(patch, root)
        assert copy.repro() == after("base")
        assert copy.repro() == set()
    return copy


@pytest.fixture
def copy(finished, monkeypatch) -> Copy:
    """The finished copy. Every test leaves it up to date, so that the next sees its own change alone."""
    use_standin(monkeypatch, finished.root)
    return finished


@pytest.fixture
def matrix(copy):
    """The finished copy for a test that changes the matrix, which is put back afterwards."""
    yield copy
    copy.change("compare.methods", METHODS)
    copy.change("compare.seeds", [1])
    copy.change("compare.variants", {})
    for pattern in ("*-seed2", "lora-*"):
        for path in [*copy.root.glob(f"data/models/{pattern}"), *copy.root.glob(f"reports/runs/{pattern}.json")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy.repro()


def use_standin(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Make ``python`` the stand-in for whatever DVC runs in ``root``."""
    programs = root / "bin"
    programs.mkdir(exist_ok=True)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{ROOT}/tests/standin.py" "$@"\n')
    python.chmod(0o755)
    patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    patch.chdir(root)


def test_a_lock_file_of_release_0_1_0_with_a_stage_for_pilots_runs_the_stage_that_took_its_place(copy):
    lock = copy.root / "dvc.lock"
    stages = YAML_FILE.load(lock.read_text(encoding="utf-8"))
    signals = stages["stages"]["signals"]
    old = {"cmd": "python -m stages.signals --out reports/signals.csv", "deps": signals["deps"]}
    for name, place in (("signals", 1), ("pilot", 0)):
        stages["stages"][name] = {**old, "outs": [signals["outs"][place]]}
    with lock.open("w", encoding="utf-8") as file:
        YAML_FILE.dump(stages, file)
    assert copy.stale() == {"signals"}
    copy.repro()
    assert copy.stale() == set()


# A parameter, another value, the stages that read it, and the first of those that follow.
CHANGES = [
    ("model.revision", "main", {"base"}, "base"),
    ("data.limits.train", 100, {"prepare"}, "prepare"),
    ("prepare.max_tokens", 256, {"prepare"}, "prepare"),
    ("device.dtype", "bfloat16", {"signals", "trace", "plan", "finetune", "evaluate"}, "trace"),
    ("signals.sample", 10, {"signals"}, "signals"),
    ("pilot.seed", 10, {"signals"}, "signals"),
    ("trace.sample", 10, {"trace"}, "trace"),
    ("fit.bootstrap", 50, {"fit"}, "fit"),
    ("plan.last_n", 3, {"plan"}, "plan"),
    ("finetune.epochs", 7, {"signals", "plan", "finetune"}, "signals"),
    ("finetune.weight_decay", 0.5, {"signals", "finetune"}, "signals"),
    ("finetune.cache", "memory", {"signals", "finetune", "evaluate"}, "signals"),
    ("evaluate.bootstrap", 99, {"evaluate"}, "evaluate"),
]


@pytest.mark.parametrize(("key", "value", "readers", "first"), CHANGES)
def test_a_changed_parameter_makes_stale_what_reads_it_and_reaches_what_follows(copy, key, value, readers, first):
    before = copy.get(key)
    copy.change(key, value)
    try:
        # The page shows every parameter, so it always reads the changed one too.
        stale = copy.stale()
        assert {name.partition("@")[0] for name in stale} == readers | {"report"}
        assert copy.with_followers(stale) == after(first) | readers - {"finetune"}
    finally:
        copy.change(key, before)


@pytest.mark.parametrize(
    ("key", "value", "readers", "first"),
    [pytest.param(*each, marks=() if each[0] == "evaluate.bootstrap" else pytest.mark.slow) for each in CHANGES],
)
def test_one_changed_parameter_runs_its_stages_and_what_follows(copy, key, value, readers, first):
    copy.change(key, value)
    assert copy.repro() == after(first) | {name for name in after("base") if name.partition("@")[0] in readers}


@pytest.mark.slow
def test_one_more_seed_runs_that_seed_alone(matrix):
    matrix.change("compare.seeds", [1, 2])
    assert matrix.repro() == {f"finetune@{method}-2" for method in METHODS} | {"evaluate", "report"}


@pytest.mark.slow
def test_one_method_less_runs_no_fine_tune(matrix):
    matrix.change("compare.methods", METHODS[:-1])
    assert matrix.repro() == {"evaluate", "report"}


@pytest.mark.slow
def test_a_variant_whose_settings_change_runs_alone(matrix):
    variants = {f"lora-{rank}": {"method": "lora", "lora_rank": rank} for rank in (4, 64)}
    matrix.change("compare.variants", variants)
    assert matrix.repro() == {"variant@lora-4-1", "variant@lora-64-1", "evaluate", "report"}
    matrix.change("compare.variants", {**variants, "lora-64": {"method": "lora", "lora_rank": 32}})
    assert matrix.repro() == {"variant@lora-64-1", "evaluate", "report"}


@pytest.mark.slow
@pytest.mark.parametrize(("file", "runs"), [("stages/fit/compare.py", {"fit"}), ("salf/laws.py", after("base"))])
def test_edited_code_runs_its_own_stage_and_shared_code_runs_all(copy, file, runs):
    helper = copy.root / file
    source = helper.read_text(encoding="utf-8")
    helper.write_text(source + "\n# an edit\n", encoding="utf-8")
    try:
        # The edit changes no number, so nothing that only reads what these stages write runs.
        assert copy.repro() == runs
    finally:
        helper.write_text(source, encoding="utf-8")
        copy.repro()


@pytest.mark.slow
def test_a_parameter_changed_back_is_restored_and_not_run_again(copy):
    before = copy.get("finetune.lisa_steps")
    copy.change("finetune.lisa_steps", 4)
    assert copy.repro() == after("finetune")
    copy.change("finetune.lisa_steps", before)
    # The page is a plain file in git, not in DVC's cache: it alone is made again.
    assert copy.repro() == {"report"}


def test_a_lost_output_is_restored_and_not_run_again(copy):
    shutil.rmtree(copy.root / "data/models/full-seed1")
    (copy.root / "reports/scaling_law.json").unlink()
    assert copy.repro() == set()
    assert (copy.root / "data/models/full-seed1").is_dir()
    assert (copy.root / "reports/scaling_law.json").is_file()


def test_your_own_data_file_is_a_dependency(copy):
    own = copy.root / "data/raw/rows.csv"
    own.write_text("text,label\n")
    try:
        assert copy.stale() == {"prepare"}
    finally:
        own.unlink()


def test_models_are_linked_to_the_cache_and_not_doubled(copy):
    file = copy.root / "data/models/full-seed1/data.bin"
    assert file.stat().st_nlink > 1 or file.is_symlink()
    assert not file.stat().st_mode & 0o222  # read-only: a stray write in place is refused
