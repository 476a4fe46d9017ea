"""The data sets that README.md gives as examples are prepared by the very settings that stand there."""

import itertools
import json
import re
import shlex

import pytest
from dvc.utils.hydra import apply_overrides

from stages.prepare.__main__ import main
from tests.conftest import PROJECT
from tests.prepare.making import write_base, write_params

README = (PROJECT / "README.md").read_text(encoding="utf-8")
# bash's $'...' turns \n into a line break, which shlex does not know.
COMMANDS = [
    shlex.split(re.sub(r"\$'([^']*)'", lambda quoted: "'" + quoted[1].replace("\\n", "\n") + "'", command))
    for command in re.findall(r"^dvc exp run ((?:.*\\\n)*.*)$", README, re.MULTILINE)
    if "../shared/data/" in command
]
CLASSES = {"trec": 6, "sst5": 5, "arc_easy": 0, "commonsense_qa": 0}


def settings(command: list[str]) -> list[str]:
    return [value for option, value in itertools.pairwise(command) if option == "-S"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: settings(command)[1].rsplit("/", 1)[-1])
def test_an_example_of_the_readme(command, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml", {"limits": {"train": 60, "validation": 12, "test": 24}}, {})
    given = [value.replace("../shared/data", str(shared / "data")) for value in settings(command)]
    apply_overrides("params.yaml", given)
    main(["--base", str(write_base(tmp_path / "base", context=8192)), "--out", "prepared"])
    meta = json.loads((tmp_path / "prepared/meta.json").read_text(encoding="utf-8"))
    name = settings(command)[1].rsplit("/", 1)[-1]
    assert len(meta["labels"]) == CLASSES[name]
    assert meta["splits"]["test"]["rows"] >= 20


def test_they_are_all_there():
    assert {settings(command)[1].rsplit("/", 1)[-1] for command in COMMANDS} == set(CLASSES)
