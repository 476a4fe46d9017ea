"""README.md and docs/: the site builds from them without network, and the programs understand every command."""

import json
import re
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO

import pytest
import yaml
from dvc.cli import parse_args
from dvc.utils.hydra import apply_overrides
from mkdocs.commands.build import build
from mkdocs.config import load_config

from salf.cli import main as salf
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.docs_blocks import commands, overrides, text_of

PAGES = ["README.md", *sorted(page.name for page in (PROJECT / "docs").glob("*.md"))]
COMMANDS = sorted({tuple(command) for page in PAGES for command in commands(page)})
TESTED_ELSEWHERE = {"prefect", "torchrun"}  # by their own tests: tests/flows/test_deployments, test_several_processes
OTHERS = {"cd", "cp", "mkdir", "git", "export", "pip"}


def of(program: str) -> list[tuple[str, ...]]:
    return [command for command in COMMANDS if command[0] == program]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_no_page_loads_anything_from_another_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 8
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text(encoding="utf-8"))
        foreign = [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)]
        assert not foreign, page
    assert not [css for css in site.rglob("*.css") if re.search(r"url\([\"']?(?:https?:)?//", css.read_text())]


def test_the_site_has_the_linked_files_of_the_project_and_the_public_functions(site):
    assert (site / "reports/study/figures/methods.svg").is_file()
    assert (site / "params.yaml").read_bytes() == (PROJECT / "params.yaml").read_bytes()
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(
        name in api for name in ("FreezePlan.apply", *(f"{name}</span>" for name in ("prefix_states", "suffix")))
    )


def test_every_link_of_the_readme_leads_somewhere():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", text_of("README.md"))
    assert len(links) > 5
    assert not [link for link in links if not (PROJECT / link).exists()]


def test_the_readme_is_short():
    assert len(re.sub(r"```.*?```", "", text_of("README.md"), flags=re.DOTALL).split()) <= 900


def test_the_readme_quotes_the_study():
    found = json.loads((PROJECT / "reports/study/summary.json").read_text(encoding="utf-8"))
    rules = {row["rule"]: row for row in found["first_round"]["selectors"]["embedded"]}
    half, paper, readme = found["methods"]["half"], rules["salf"], text_of("README.md").replace("−", "-")
    assert f"costs {100 * half['cost_share']:.0f} % of full fine-tuning's FLOPs" in readme
    (low, high), (low_elsewhere, high_elsewhere) = half["interval_examples"], half["interval_datasets"]
    elsewhere = f"over datasets like these {low_elsewhere:.1f} to {high_elsewhere:.1f}"
    interval = f"(95 % interval {low:.1f} to {high:.1f}; {elsewhere})"
    assert f"{half['mean_difference_points']:+.1f} points on the mean of nine datasets {interval}" in readme
    here, elsewhere = half["detectable_points"], half["detectable_points_datasets"]
    assert f"a true difference of {here:.1f} points would be detected, or of {elsewhere:.1f} over datasets" in readme
    assert (half["groups"], rules["half"]["groups_worse"]) == (9, 6)
    assert f"loses {-paper['over_full']:.1f} points at {100 * paper['cost_share']:.0f} % of the cost" in readme
    compute, (low, high) = half["at_equal_flops"], half["at_equal_flops"]["interval_examples"]
    assert f"half is {compute['mean_difference_points']:.1f} points above full fine-tuning" in readme
    assert f"({low:.1f} to {high:.1f}, eight datasets)" in readme


def test_every_command_is_of_a_program_that_is_checked():
    checked = {"make", "python", "dvc", "salf"} | TESTED_ELSEWHERE | OTHERS
    assert not {command for command in COMMANDS if command[0] not in checked}


@pytest.mark.parametrize("command", of("make"), ids=" ".join)
def test_a_target_and_its_variables_exist(command):
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for word in command[1:]:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"\b{name}\b" if is_variable else rf"^{name}:", makefile, re.MULTILINE), word


@pytest.mark.parametrize("command", of("python"), ids=" ".join)
def test_a_module_has_the_options(command, monkeypatch):
    """With ``--help`` at the end a command's words are read, and nothing is done."""
    assert command[1] == "-m"
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "argv", [command[2], *command[3:], "--help"])
    printed = StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        runpy.run_module(command[2], run_name="__main__")
    assert ended.value.code == 0
    known = set(re.findall(r"--[\w-]+", printed.getvalue()))
    assert {word for word in command if word.startswith("--")} <= known


@pytest.mark.parametrize("command", of("salf"), ids=" ".join)
def test_the_command_salf_has_the_options(command, capsys):
    with pytest.raises(SystemExit) as ended:
        salf([*command[1:], "--help"])
    assert ended.value.code == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert {word for word in command if word.startswith("--")} <= known


@pytest.mark.parametrize("command", of("dvc"), ids=" ".join)
def test_dvc_reads_the_command(command):
    assert parse_args(list(command[1:]))


def axes() -> list[str]:
    """Every override of a command; each value of a sweep's axis by itself."""
    every = [value for command in COMMANDS for value in overrides(list(command), "-S")]
    for override in [value for command in COMMANDS for value in overrides(list(command), "--set")]:
        key, _, value = override.partition("=")
        values = yaml.safe_load(value) if value.startswith("[") else [value]
        every += [f"{key}={one}" for one in values]
    return [override for override in every if not override.startswith(("data.", "+data."))]  # of whole datasets


@pytest.mark.parametrize("override", sorted(set(axes())))
def test_an_override_is_a_parameter_with_an_allowed_value(override, tmp_path):
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    apply_overrides(str(tmp_path / "params.yaml"), [override])
    load_params(tmp_path / "params.yaml")  # an unknown key or a value that is not allowed raises
