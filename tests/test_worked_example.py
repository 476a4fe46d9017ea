"""The worked example of docs/your-data.md, command by command, in a copy of the project with a small random model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.workspace import stage_environment
from tests.conftest import PROJECT
from tests.docs_blocks import blocks, run_python

pytestmark = [pytest.mark.chain, pytest.mark.slow]

PAGE, SECTION = "your-data.md", "Worked example: support tickets"
FILE = YAML()
SMALLER = {  # the section's own settings stay as they are
    "device": {"kind": "cpu", "dtype": "float32"},
    "compare": {"methods": ["full", "half"]},
    "fit": {"bootstrap": 20},
    "evaluate": {"bootstrap": 20},
    "finetune": {"epochs": 1},
    "prepare": {"max_tokens": 1024},  # of a byte a token
}


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


def new_project(root: Path) -> None:
    """The files that git knows, as they are now, in a repository of their own."""
    named = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in named.rstrip("\0").split("\0"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, root / name)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "the project")


def change_params(root: Path, changes: dict) -> None:
    file = root / "params.yaml"
    params = FILE.load(file.read_text(encoding="utf-8"))
    for group, entries in changes.items():
        params[group].update(entries)
    with file.open("w", encoding="utf-8") as opened:
        FILE.dump(params, opened)


def run(root: Path, command: str) -> str:
    environment = {**stage_environment(os.environ), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "Test", f"GIT_{role}_EMAIL": "test@example.org"}
    done = subprocess.run(["sh", "-ec", command], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory, hub_folder):
    """The copy after the whole section, and what each command printed."""
    root = tmp_path_factory.mktemp("tickets") / "project"
    root.mkdir()
    new_project(root)
    change_params(root, {**SMALLER, "model": {"source": str(hub_folder)}})
    printed: dict[str, str] = {}
    for language, block in blocks(PAGE, section=SECTION):
        if language == "yaml":
            change_params(root, FILE.load(block))
        elif language == "sh":
            printed |= {command: run(root, command) for command in block.splitlines()}
    return root, printed


@pytest.mark.timeout(1200)
def test_every_command_does_its_work_and_the_ticket_file_becomes_a_model_folder(walked):
    root, printed = walked
    meta = json.loads((root / "data/prepared/meta.json").read_text())
    assert {label["label"] for label in meta["labels"]} == {"billing", "delivery", "returns", "technical", "account"}
    assert sum(split["rows"] for split in meta["splits"].values()) > 300
    assert (root / "reports/index.html").is_file()
    shown = printed["python -m flows.lineage show data/models/full-seed1"]
    assert "tickets.csv" in shown


def test_no_customer_falls_into_two_splits(walked):
    import pandas as pd

    root, _ = walked
    tickets = pd.read_csv(root / "docs/example/tickets.csv")
    customer = dict(zip(tickets.text, tickets.customer, strict=True))
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for prompt in pd.read_parquet(root / f"data/prepared/{split}.parquet").prompt:
            text = prompt.rpartition("Ticket: ")[2].rpartition("\nTeam:")[0]
            assert seen.setdefault(customer[text], split) == split


def test_the_function_that_was_exported_is_python(walked):
    _, printed = walked
    names: dict = {}
    exec(printed["salf export --format trainer"], names)
    assert callable(names["apply_freeze_plan"])


def test_the_model_folder_is_used_as_the_page_says(walked, monkeypatch, capsys):
    root, _ = walked
    monkeypatch.chdir(root)
    for _, block in blocks(PAGE, "python"):
        run_python(block, {}, PAGE)
    assert capsys.readouterr().out
