"""A small random model and a task that it learns, as the stages base and prepare leave them."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import write_tiny_task

SETTINGS = {
    "data__limits": {"train": 96, "validation": 12, "test": 3},
    "finetune__epochs": 2,
    "finetune__batch_size": 8,
    "finetune__learning_rate": {"full": 0.003, "salf": 0.003, "lora": 0.003, "salf+lora": 0.003},
    "finetune__cache": "memory",
    "pilot__enabled": True,
    "pilot__boundaries": [0, 0.25, 0.5],
    "pilot__sizes": [0.125, 0.25, 0.5],
    "pilot__bootstrap": 20,
}


ARGV = [
    *("--base", "data/base", "--prepared", "data/prepared"),
    *("--out", "reports/signals.csv", "--pilot", "reports/pilot.json"),
]


class Workspace:
    """A folder in which the stage runs; ``pilot(...)`` changes parameters first."""

    def __init__(self, root: Path, hub_folder: Path) -> None:
        self.root, self.hub_folder = root, hub_folder
        self.out = root / "reports/pilot.json"

    def set(self, **changes: object) -> None:
        write_tiny_task(self.root, self.hub_folder, **{**SETTINGS, **changes})

    def pilot(self, **changes: object) -> dict:
        self.set(**changes)
        self.out.parent.mkdir(exist_ok=True)
        import_module("stages.signals.__main__").main(ARGV)
        return json.loads(self.out.read_text())


@pytest.fixture(scope="session")
def ready(tmp_path_factory, hub_folder) -> Workspace:
    """Base and prepared data, made once."""
    workspace = Workspace(tmp_path_factory.mktemp("pilot"), hub_folder)
    workspace.set()
    (workspace.root / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        import_module("stages.base.__main__").main(["--out", "data/base"])
        import_module("stages.prepare.__main__").main(["--base", "data/base", "--out", "data/prepared"])
    return workspace


@pytest.fixture
def workspace(ready, monkeypatch) -> Workspace:
    monkeypatch.chdir(ready.root)
    ready.out.unlink(missing_ok=True)
    return ready
