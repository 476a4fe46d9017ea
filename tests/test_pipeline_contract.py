"""dvc.yaml says about every stage what the stage's source says about itself."""

import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.common.params import Params, load_params
from tests.conftest import write_params
from tests.stage_sources import ROOT, parameters_of

STAGES = ["base", "prepare", "trace", "fit", "signals", "plan", "finetune", "variant", "evaluate", "report"]
GRAPH = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
DECLARED = GRAPH["stages"]


ROOMS = {name: "finetune" if name == "variant" else name for name in STAGES}  # the stage's program


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """The stages as DVC sees them, matrix items and interpolated values resolved: name → items; with a variant."""
    root = tmp_path_factory.mktemp("project")
    write_params(root, compare__variants={"lora-64": {"method": "lora", "lora_rank": 64}})
    shutil.copy(ROOT / "dvc.yaml", root)
    Repo.init(str(root), no_scm=True).close()
    with Repo(str(root)) as repo:
        items: dict[str, list] = {}
        for stage in repo.index.stages:
            items.setdefault(stage.name.partition("@")[0], []).append(stage)
    return items


def paths_of(entries) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def options_of(command: str) -> dict[str, str]:
    """``python -m stages.fit --law x`` → ``{"--law": "x"}``."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"]
    assert len(words) % 2 == 1, f"{command}: every option takes one value"
    return dict(zip(words[3::2], words[4::2], strict=True))


def test_the_graph_has_the_stages_of_the_design_in_their_order():
    assert list(DECLARED) == STAGES


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_says_what_it_does_and_how_long_it_may_take(name):
    stage = DECLARED[name]
    assert len(stage["desc"]) > 20
    assert stage["meta"]["retries"] in range(4)
    assert stage["meta"]["timeout"] >= 60


@pytest.mark.parametrize("name", STAGES)
def test_params_are_what_the_stage_is_given_to_read(name):
    own = {"compare.variants.${item.variant}"} if name == "variant" else set()
    assert set(DECLARED[name].get("params", [])) == parameters_of(ROOMS[name]) | own


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_room_and_on_the_code_that_all_share(name):
    sources = [dep for dep in paths_of(DECLARED[name]["deps"]) if dep.partition("/")[0] in ("salf", "stages")]
    assert sorted(sources) == sorted(["salf", "stages/common", f"stages/{ROOMS[name]}"])


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_the_command_is_a_dependency_or_an_output(name, resolved):
    for item in resolved[name]:
        declared = {entry.def_path for entry in [*item.deps, *item.outs]}
        paths = {value for value in options_of(item.cmd).values() if "/" in value}
        for path in paths:
            # A folder may be given where the stage depends on some of its files, or makes one of them.
            assert path in declared or any(entry.startswith(f"{path}/") for entry in declared), path
        outputs = {out.def_path for out in item.outs}
        assert outputs <= paths, f"{item.name}: the command does not name all its outputs"


@pytest.mark.parametrize("name", STAGES)
def test_every_option_in_the_command_exists_and_none_that_is_required_is_missing(name, resolved, capsys):
    main = import_module(f"stages.{ROOMS[name]}.__main__").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    known = {word.strip("[],.") for word in text.split() if word.strip("[],.").startswith("--")}
    for item in resolved[name]:
        assert set(options_of(item.cmd)) <= known
    with pytest.raises(SystemExit) as ended:
        main(["--no-such-option", "x"])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", STAGES)
def test_the_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit):
        import_module(f"stages.{ROOMS[name]}.__main__").main(["--help"])
    assert f"python -m stages.{ROOMS[name]} " in capsys.readouterr().out.partition("options:")[2]


def test_every_group_of_parameters_is_read_by_a_stage():
    read = {key.partition(".")[0] for stage in DECLARED.values() for key in stage.get("params", [])}
    assert read == set(Params.model_fields)


def test_the_matrix_is_that_of_the_parameters_and_no_item_reads_its_axes(resolved):
    compare = load_params(ROOT / "params.yaml").compare
    wanted = {f"finetune@{method}-{seed}" for method in compare.methods for seed in compare.seeds}
    assert {item.name for item in resolved["finetune"]} == wanted
    assert {item.name for item in resolved["variant"]} == {f"variant@lora-64-{seed}" for seed in compare.seeds}
    assert load_params(ROOT / "params.yaml").compare.variants == {}
    for stage in ("finetune", "variant"):  # or one more seed would run all of them again
        assert not {"compare", "compare.variants"} & set(DECLARED[stage]["params"])


def test_every_fine_tune_goes_to_evaluation(resolved):
    (evaluation,) = resolved["evaluate"]
    read = {Path(dep.def_path) for dep in evaluation.deps}
    for item in [*resolved["finetune"], *resolved["variant"]]:
        for out in item.outs:
            path = Path(out.def_path)
            assert path in read or any(parent in read for parent in path.parents), path


def test_plots_draw_what_the_stages_write(resolved):
    written = {out.def_path for items in resolved.values() for item in items for out in item.outs}
    drawn = {source for plot in GRAPH["plots"] for spec in plot.values() for source in spec["y"]}
    assert drawn
    assert drawn <= written
