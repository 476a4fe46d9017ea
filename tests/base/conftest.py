"""Bringing a base model in, and a folder to be changed before that."""

import json
import shutil

import pytest

from stages.base.__main__ import main
from tests.conftest import write_params


def bring(tmp_path, monkeypatch, source, *, trial=False, **changes):
    """``trial``: open the folder's files in a child process first, which takes seconds to start."""
    monkeypatch.chdir(tmp_path)
    if not trial:
        monkeypatch.setattr("stages.base.sources.try_out", lambda *_: None)
    write_params(tmp_path, model__source=str(source), **changes)
    main(["--out", "base"])
    return tmp_path / "base"


def facts_of(folder):
    return json.loads((folder / "base.json").read_text())


@pytest.fixture
def source(tmp_path, hub_folder):
    return shutil.copytree(hub_folder, tmp_path / "source")
