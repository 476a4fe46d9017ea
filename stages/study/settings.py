"""A case's parameters, and which of them decide a result.

Results are saved with the settings that decide them: values of parameters, and hashes of the data's and the model's
files instead of their paths. A parameter that is newer than a result is assumed to leave it as it was by default; any
other difference makes the result part of another study.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from salf.errors import UserError
from salf.files import digest_of, sha256_file
from salf.methods import RACE, SCOPES, WORDS
from stages.common.params import OLD_BALANCE, PARAMS_FILE
from stages.study.agenda import FineTune
from stages.study.description import Arm, Case, Description, Settings

CACHE_FOLDER: Final = Path("data/boundary_cache")
# Keys of finetune that change neither the course of training nor its result, or that are columns of a row.
_ASIDE: Final = {"accumulate", "cache", "cache_folder", "cache_gib", "checkpoint_minutes", "equal_compute"}
_ASIDE_TOO: Final = {"evaluations_per_epoch", "gradient_checkpointing", "learning_rate", "processes"}
# A method's own parameters in finetune decide nothing for other methods: their prefix, by a word of the method's name.
_OWN: Final = {
    **{name: scope.settings for name, scope in SCOPES.items() if scope.settings},
    **{name: word.settings for name, word in WORDS.items() if word.settings},
}
LIBRARIES: Final = ("networkx", "numpy", "pandas", "scikit-learn", "scipy", "sympy", "torch", "transformers")
_PIN: Final = re.compile(r"^([\w.-]+)==(\S+)", flags=re.MULTILINE)


class AbsentError(UserError):
    """A dataset or a model is not on this machine; the text names what is missing."""


@dataclass(frozen=True)
class Places:
    """Absolute paths of the project (the folder of ``dvc.yaml``), the folder of datasets and the folder of models."""

    project: Path
    data: Path
    models: Path


def case_values(description: Description, case: Case, places: Places) -> Settings:
    """Return all values that a case sets, by dotted name; paths are absolute, because jobs run in other folders."""
    data_set, model = description.data_sets[case.data_set], description.models[case.model]
    data = {f"data.{name}": value for name, value in data_set.data.items()}
    values = {**description.common, **data, **data_set.set, **model.set}
    if "examples" in data_set.data:
        named = data_set.data["examples"]
        values["data.examples"] = {**named, "table": str(places.project / named["table"])}
    if data_set.path is not None:
        values["data.path"] = str(_found(places.data / data_set.path, case.data_set))
    if model.path is not None:
        values["model.source"] = str(_found(places.models / model.path, case.model))
    values["finetune.cache_folder"] = str(places.project / CACHE_FOLDER)
    return values


def training_values(case: Settings, one: FineTune, description: Description) -> Settings:
    """Return the values of a job that fine-tunes, given those of its case."""
    name = description.trained(one.method)
    values = {**case, **description.arm(one.method).set, "compare.methods": [name], "compare.seeds": [one.seed]}
    values["finetune.learning_rate"] = {} if name == RACE else {name: list(one.rates)}
    return {**values, "finetune.equal_compute": True} if one.budget == "compute" else values


def read_parameters(project: Path) -> dict[str, Any]:
    """Return the content of params.yaml."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((project / PARAMS_FILE).read_text(encoding="utf-8"))
    return found


def parameters(shipped: Mapping[str, Any], values: Settings) -> dict[str, Any]:
    """Return the content of params.yaml with values set; their ranges are checked by the stages.

    Raises:
        UserError: params.yaml has no such parameter.
    """
    params = copy.deepcopy(dict(shipped))
    for key, value in values.items():
        group, _, name = key.partition(".")
        known = params.get(group, {})
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            raise UserError(f"{key}: unknown parameter" + (f"; did you mean {close[0]}?" if close else ""))
        known[name] = value
    return params


def training_settings(params: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return what decides the results of all fine-tunes of a case, apart from method, seed, rates and budget."""
    data = {key: value for key, value in params["data"].items() if key not in ("path", "examples")}
    data["examples"] = (params["data"].get("examples") or {}).get("name")  # wherever the table is
    model = {key: value for key, value in params["model"].items() if key != "source"}
    aside, own = _ASIDE | _ASIDE_TOO, tuple(_OWN.values())
    finetune = params["finetune"].items()
    return {
        "data": {**data, "content": _data_content(params["data"], project)},
        "model": {**model, "content": _model_content(params["model"], project)},
        "prepare": params["prepare"],
        "finetune": {key: value for key, value in finetune if key not in aside and not key.startswith(own)},
        "evaluate": {key: params["evaluate"][key] for key in ("answer_marker", "generate_tokens")},
    }


def method_settings(shipped: Mapping[str, Any], case: Settings, method: str, arm: Arm) -> dict[str, Any]:
    """Return what decides the results of one method alone; empty for methods that freeze up to a layer."""
    params, name = parameters(shipped, {**case, **arm.set}), arm.method or method
    race = {"race": params["race"]} if name == RACE else {}
    prefixes = tuple(prefix for word, prefix in _OWN.items() if word in f"{name} {race}")
    own = {key: value for key, value in params["finetune"].items() if key.startswith(prefixes)} | race
    own |= {key: value for key, value in params["plan"].items() if key == name.partition("+")[0].replace("-", "_")}
    return own | ({"set": arm.set} if arm.set else {})


def plan_settings(params: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return what decides a plan."""
    groups = ("trace", "fit", "signals", "pilot", "plan")
    return {**training_settings(params, project), **{name: params[name] for name in groups}}


def still_holds(kept: Any, now: Any) -> bool:
    """Whether everything that saved settings name has the same value now; names that they lack may be new."""
    if isinstance(kept, Mapping):
        return isinstance(now, Mapping) and all(key in now and still_holds(kept[key], now[key]) for key in kept)
    return bool(kept == now or (isinstance(kept, bool) and OLD_BALANCE[kept] == now))


def digest(value: Any) -> str:
    """Return a short hash of a JSON-like value."""
    return digest_of(value)[:16]


def _found(path: Path, name: str) -> Path:
    if not path.exists():
        raise AbsentError(f"{name}: no {path}")
    return path.resolve()


def _data_content(data: Mapping[str, Any], project: Path) -> Any:
    if data["source"] == "docstrings":  # only the libraries whose docstrings are read
        pins = dict(_PIN.findall((project / "requirements.lock").read_text(encoding="utf-8")))
        return {name: pins[name] for name in LIBRARIES if name in pins}
    if data["source"] == "files":
        path = project / data["path"]
        names = [name for name in data["splits"].values() if name is not None]
        return _hash([path] if path.is_file() else [file for name in names for file in sorted(path.glob(f"{name}.*"))])
    return None  # a Hub dataset: its name and revision identify it


def _model_content(model: Mapping[str, Any], project: Path) -> Any:
    if model["source"] == "embedded":
        return _hash([project / "requirements-model.lock"])
    folder = project / model["source"]
    return _hash(sorted(file for file in folder.iterdir() if file.is_file())) if folder.is_dir() else model["source"]


def _hash(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: _sha256(file, file.stat().st_mtime_ns) for file in files}


@cache
def _sha256(file: Path, _modified: int) -> str:
    return sha256_file(file)
