"""A case's parameters: what is handed to DVC, and what of it decides a result.

Results are kept with the settings that decide them: values of parameters, and hashes of the data's and the
model's files in place of their paths. A parameter that came later, which the kept settings do not name, is
taken to leave the result as it was by default; any other difference makes a result one of another study.
"""

import ast
import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from flows.overrides import PARAMS_FILE, OverrideError, changed
from flows.study.agenda import Case, FineTune
from flows.study.description import Description, Settings, StudyError

CACHE_FOLDER: Final = Path("data/boundary_cache")
# Of finetune: what changes neither the course of training nor its result, and what stands in a row of its own.
_ASIDE: Final = frozenset(
    {
        "accumulate",
        "cache",
        "cache_folder",
        "cache_gib",
        "checkpoint_minutes",
        "equal_compute",
        "evaluations_per_epoch",
        "gradient_checkpointing",
        "learning_rate",
        "processes",
    }
)
_SCORING: Final = ("answer_marker", "generate_tokens")
# A method's own parameters decide nothing for the others: prefixes in finetune, by what the method's name holds.
_OWN: Final = {"lora": "lora_", "lisa": "lisa_"}
_CONTROL: Final = "first_n"  # of plan: no boundary depends on it
_CODE: Final = ("salf", *(f"stages/{room}" for room in ("base", "common", "evaluate", "finetune", "prepare")))
LIBRARIES: Final = ("networkx", "numpy", "pandas", "scikit-learn", "scipy", "sympy", "torch", "transformers")
_PIN: Final = re.compile(r"^([\w.-]+)==(\S+)", flags=re.MULTILINE)


class AbsentError(StudyError):
    """A data set or a model is not on this machine; the text names what is missing."""


@dataclass(frozen=True)
class Places:
    """Where a study finds things.

    Attributes:
        project: the folder that holds ``dvc.yaml``.
        data: the folder of data sets.
        models: the folder of models.
    """

    project: Path
    data: Path
    models: Path


def overrides(description: Description, case: Case, places: Places) -> Settings:
    """All values that a case sets, by dotted name; paths are absolute, since experiments run elsewhere.

    Raises:
        AbsentError: the data set's or the model's files are not there.
    """
    data_set, model = description.data_sets[case.data_set], description.models[case.model]
    data = {f"data.{name}": value for name, value in data_set.data.items()}
    bare = {"data.template": data_set.bare} if model.bare else {}
    values = {**description.common, **data, **bare, **data_set.set, **model.set}
    if "examples" in data_set.data:
        named = data_set.data["examples"]
        values["data.examples"] = {**named, "table": str(places.project / named["table"])}
    if data_set.path is not None:
        values["data.path"] = str(_found(places.data / data_set.path, case.data_set))
    if model.path is not None:
        values["model.source"] = str(_found(places.models / model.path, case.model))
    values["finetune.cache_folder"] = str(places.project / CACHE_FOLDER)
    return values


def for_training(case_values: Settings, batch: tuple[FineTune, ...]) -> Settings:
    """The values of an experiment that fine-tunes a batch."""
    values = dict(case_values)
    values["compare.methods"] = [fine_tune.method for fine_tune in batch]
    values["compare.seeds"] = [batch[0].seed]
    values["finetune.learning_rate"] = {fine_tune.method: list(fine_tune.new_rates) for fine_tune in batch}
    if batch[0].budget == "compute":
        values["finetune.equal_compute"] = True
    return values


def check(project: Path, values: Settings) -> None:
    """Refuse values for which params.yaml has no place.

    Raises:
        StudyError: names them all.
    """
    if not values:
        return
    try:
        changed((project / PARAMS_FILE).read_text(encoding="utf-8"), values)
    except OverrideError as error:
        raise StudyError(str(error)) from None


def parameters(shipped: Mapping[str, Any], values: Settings) -> dict[str, Any]:
    """The project's parameters with values set: as the stages will read them.

    Args:
        shipped: the content of params.yaml.
        values: by dotted name; see :func:`check`.
    """
    params = copy.deepcopy(dict(shipped))
    for key, value in values.items():
        *groups, name = key.split(".")
        place = params
        for group in groups:
            place = place[group]
        place[name] = value
    return params


def read_parameters(project: Path) -> dict[str, Any]:
    """The content of params.yaml."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((project / PARAMS_FILE).read_text(encoding="utf-8"))
    return found


def training_settings(params: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """What decides the results of all of a case's fine-tunes, their method, seed, rates and budget aside."""
    finetune = {key: value for key, value in params["finetune"].items() if key not in _ASIDE}
    shared = {key: value for key, value in finetune.items() if not key.startswith(tuple(_OWN.values()))}
    scoring = {key: params["evaluate"][key] for key in _SCORING}
    return {**_inputs(params, project), "finetune": shared, "evaluate": scoring}


def method_settings(params: Mapping[str, Any], method: str, project: Path) -> dict[str, Any]:
    """What decides the result of one method alone; nothing for those that freeze up to a layer.

    ``first-n`` trains as many layers as the plan, unless told: then all that decides the plan counts.
    """
    prefixes = tuple(prefix for word, prefix in _OWN.items() if word in method)
    own = {key: value for key, value in params["finetune"].items() if prefixes and key.startswith(prefixes)}
    name = method.partition("+")[0].replace("-", "_")
    if name == _CONTROL and params["plan"][_CONTROL] is None:
        return plan_settings(params, project)
    return own | {key: value for key, value in params["plan"].items() if key == name}


def plan_settings(params: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """What decides a plan: every group that a stage before it reads."""
    groups = ("trace", "fit", "signals", "pilot")
    finetune = {key: value for key, value in params["finetune"].items() if not key.startswith("cache")}
    found = {**_inputs(params, project), **{name: params[name] for name in groups if name in params}}
    found["plan"] = {key: value for key, value in params["plan"].items() if key != _CONTROL}
    return {**found, "finetune": finetune}


def digest(value: Any) -> str:
    """Short hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def code_version(project: Path) -> str:
    """Hash of the program of the stages that make results; comments, docstrings and layout do not count."""
    files = [file for room in _CODE for file in sorted((project / room).rglob("*.py"))]
    return digest({file.relative_to(project).as_posix(): _program(file) for file in files})


def _found(path: Path, name: str) -> Path:
    if not path.exists():
        raise AbsentError(f"{name}: no {path}")
    return path.resolve()


def _inputs(params: Mapping[str, Any], project: Path) -> dict[str, Any]:
    data = {key: value for key, value in params["data"].items() if key not in ("path", "examples")}
    data["examples"] = (params["data"].get("examples") or {}).get("name")  # wherever the table is
    model = {key: value for key, value in params["model"].items() if key != "source"}
    return {
        "data": {**data, "content": _data_content(params["data"], project)},
        "model": {**model, "content": _model_content(params["model"], project)},
        "prepare": params["prepare"],
    }


def _data_content(data: Mapping[str, Any], project: Path) -> Any:
    if data["source"] == "docstrings":  # the libraries whose docstrings are read, whatever else is installed
        pins = dict(_PIN.findall((project / "requirements.lock").read_text(encoding="utf-8")))
        return {name: pins[name] for name in LIBRARIES if name in pins}
    if data["source"] == "files":
        path = project / data["path"]
        names = [name for name in data["splits"].values() if name is not None]
        return _hash([path] if path.is_file() else [file for name in names for file in sorted(path.glob(f"{name}.*"))])
    return None  # the hub's: name and revision say it


def _model_content(model: Mapping[str, Any], project: Path) -> Any:
    if model["source"] == "embedded":
        return _hash([project / "requirements-model.lock"])
    folder = project / model["source"]
    return _hash(sorted(file for file in folder.iterdir() if file.is_file())) if folder.is_dir() else model["source"]


def _hash(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: _sha256(file, file.stat().st_mtime_ns) for file in files}


@cache
def _sha256(file: Path, _modified: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _program(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
