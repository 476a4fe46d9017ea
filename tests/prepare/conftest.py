from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.prepare.making import write_base, write_params


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def workspace(tmp_path, monkeypatch, base) -> Callable[..., Path]:
    """Write params.yaml (the shipped one, with changes to ``data`` and ``prepare``), and run the stage there."""
    monkeypatch.chdir(tmp_path)

    def run(data: dict[str, Any], prepare: dict[str, Any] | None = None, base_folder: Path = base) -> Path:
        from stages.prepare.__main__ import main

        write_params(tmp_path / "params.yaml", data, prepare or {})
        out = tmp_path / "prepared"
        main(["--base", str(base_folder), "--out", str(out)])
        return out

    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub's own library, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets
