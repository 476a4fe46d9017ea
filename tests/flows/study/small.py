"""A study of one small data set and one tiny model, as a project folder."""

import csv
import shutil
import subprocess
from pathlib import Path

from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.conftest import PROJECT, write_colours, write_params

COPIED = ("salf", "stages", ".dvcignore", ".gitignore", "dvc.yaml", "requirements.lock", "requirements-model.lock")
DESCRIPTION = {
    "budget_hours": 1.0,
    "seeds": [1],
    "together": 2,
    "boundaries": [0, 0.5, 1],
    "refine": {"rounds": 0, "midpoints": 1},
    "learning_rates": {0: [0.001, 0.003], 0.5: [0.003]},
    "widen": 0,
    "equal_compute": [],
    "methods": [],
    "common": {
        "data.source": "files",
        "data.template": "{text} is",
        "data.answer_column": "label",
        "data.group_column": None,
        "data.splits": {"train": "train", "validation": None, "test": None},
        "data.limits": {"train": 60, "validation": 12, "test": 24},
        "device.kind": "cpu",
        "device.dtype": "float32",
        "trace.sample": 16,
        "trace.losses": 8,
        "fit.bootstrap": 20,
        "finetune.epochs": 1,
        "evaluate.bootstrap": 20,
    },
    "evidence": {},
    "reference": {"trace.sample": 32, "trace.seed": 2},
    "rules": {
        "half": {"selector": "last-n", "set": {"plan.last_n": 2}},
        "salf": {"selector": "salf"},
        "full": {"selector": "full"},
        "blind": {"selector": "pilot"},
    },
    "models": {"tiny": {"path": "tiny"}},
    "data_sets": {"colours": {"path": "colours.csv"}, "elsewhere": {"path": "not-there"}},
}


OUT_OF_RANGE = {"selector": "salf", "set": {"trace.batch_tokens": 1}}  # a rule whose plan the trace refuses


def make_project(root: Path, model: Path) -> None:
    """A copy of this project under git, and beside it a data set and a model."""
    root.mkdir()
    for name in COPIED:
        source = PROJECT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, root / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    write_params(root)
    for folder in ("data", "data/raw", "reports", "flows"):
        (root / folder).mkdir(exist_ok=True)
        if (PROJECT / folder / ".gitignore").exists():
            shutil.copy(PROJECT / folder / ".gitignore", root / folder)
    (root / "data/raw/README.md").write_text("data\n")
    with (root / "flows/study.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(DESCRIPTION, file)
    git(root, "init", "-q", "-b", "main")
    Repo.init(str(root)).close()
    shutil.copy(PROJECT / ".dvc/config", root / ".dvc/config")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "state")
    (root.parent / "data").mkdir()
    write_colours(root.parent / "data/colours.csv", rows=120)
    shutil.copytree(model, root.parent / "models/tiny")


def git(root, *words):
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


def describe(root, **changes):
    """Change parts of a study's description; of a mapping the entries that are named."""
    path = root / "flows/study.yaml"
    described = YAML(typ="safe").load(path.read_text())
    for name, value in changes.items():
        described[name] = {**described[name], **value} if isinstance(value, dict) else value
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(described, file)


def study(*more):
    return ["--data", "../data", "--models", "../models", *more]


def rows(root, name="runs.csv"):
    path = root / "reports/study" / name
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
