"""Models of the hub: what goes wrong on the way to one is one line; a cached one needs no network."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

from salf.errors import UserError
from tests.base.conftest import bring
from tests.conftest import PROJECT, write_params
from tests.hub_transport import HUB_FAULTS, answering, hub_that

NAME = "somebody/thing"


@pytest.mark.parametrize("what", HUB_FAULTS)
def test_a_fault_of_the_hub_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, what):
    answer, told = HUB_FAULTS[what]
    with (
        hub_that(answer, tmp_path / "cache"),
        pytest.raises(UserError, match=rf"^model\.source = somebody/thing: .*{told}") as raised,
    ):
        bring(tmp_path, monkeypatch, NAME, model__revision="v9")
    assert "\n" not in str(raised.value)
    assert "Request" not in str(raised.value)


def test_offline_mode_without_a_cached_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with (
        hub_that(answering(200), tmp_path / "cache"),
        pytest.raises(UserError, match="not in the hub's cache, and HF_HUB_OFFLINE is set; unset it"),
    ):
        bring(tmp_path, monkeypatch, NAME)


def test_a_cache_with_a_part_of_the_model_is_named(tmp_path, monkeypatch):
    """Such as one that was filled before the user let the model's code come along."""
    commit = "0123456789" * 4
    cached = tmp_path / "cache/models--somebody--thing"
    for folder, name, text in (("refs", "main", commit), (f"snapshots/{commit}", "config.json", "{}")):
        (cached / folder).mkdir(parents=True)
        (cached / folder / name).write_text(text)
    entry = TreeCacheEntry(size=2, blob_id="0")
    write_tree_cache(str(cached), commit, {"config.json": entry, "modeling_own.py": entry})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with (
        hub_that(answering(200), tmp_path / "cache"),
        pytest.raises(UserError, match=r"cache holds a part of it only.*connect to it"),
    ):
        bring(tmp_path, monkeypatch, NAME, model__trust_remote_code=True)
    with hub_that(answering(200), tmp_path / "cache"), pytest.raises(UserError, match=r"no \.safetensors weights"):
        bring(tmp_path, monkeypatch, NAME)  # without the code nothing is missing but what this cache never had


def test_a_name_that_the_hub_cannot_have_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no folder here, and no name of the hub's") as raised:
        bring(tmp_path, monkeypatch, "one/two/three")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (errno.ENOSPC, UserError, r"no room on the disk for the hub's cache .*set HF_HOME elsewhere"),
        (errno.EACCES, PermissionError, "Permission denied"),  # stages.common.command makes its line of it
    ],
)
def test_a_fault_of_the_disk_under_the_cache(tmp_path, monkeypatch, fault, kind, told):
    def refused(*_, **__):
        raise OSError(fault, os.strerror(fault), "/cache/blobs/abc.incomplete")

    monkeypatch.setattr("stages.base.sources.snapshot_download", refused)
    with pytest.raises(kind, match=told):
        bring(tmp_path, monkeypatch, NAME)


@pytest.mark.slow
def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path, hub_folder):
    commit = "0123456789" * 4
    cached = tmp_path / "cache/models--somebody--thing"
    shutil.copytree(hub_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    write_params(tmp_path, model__source="somebody/thing")
    environment = {
        **os.environ, "PYTHONPATH": str(PROJECT), "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"
    }  # fmt: skip
    command = [sys.executable, "-m", "stages.base", "--out", "base"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "base/base.json").read_text())
    assert (facts["name"], facts["revision"]) == ("somebody/thing", commit)
