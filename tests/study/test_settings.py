"""A case's parameters, and which results still hold."""

import json
import re

import pytest
from ruamel.yaml import YAML

from salf.errors import UserError
from stages.prepare.docstrings import DISTRIBUTIONS
from stages.prepare.docstrings import LIBRARIES as SOURCES
from stages.study.agenda import FineTune
from stages.study.description import DESCRIPTION, Arm, Case, read_description
from stages.study.settings import (
    LIBRARIES,
    Places,
    case_values,
    method_settings,
    parameters,
    plan_settings,
    read_parameters,
    still_holds,
    training_settings,
    training_values,
)
from tests.conftest import PROJECT

CASE = Case("colours", "folder")


def read(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path):
    """A project of parameters and lock files; a data set and a model beside it."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("params.yaml", "requirements.lock", "requirements-model.lock"):
        (root / name).write_bytes((PROJECT / name).read_bytes())
    (tmp_path / "data/colours").mkdir(parents=True)
    for split in ("train", "test", "other"):
        (tmp_path / f"data/colours/{split}.jsonl").write_text(f'{{"text": "{split}", "label": "x"}}\n')
    (tmp_path / "models/folder").mkdir(parents=True)
    (tmp_path / "models/folder/config.json").write_text("{}")
    return root


@pytest.fixture
def places(project):
    return Places(project, project.parent / "data", project.parent / "models")


@pytest.fixture
def description(described):
    data = {
        "source": "files",
        "answer_column": "label",
        "splits": {"train": "train", "validation": None, "test": "test"},
    }
    return described(
        models={"folder": {"layers": 4, "path": "folder", "set": {"prepare.max_tokens": 99}}},
        data_sets={"colours": {"path": "colours", "data": data, "set": {"prepare.max_tokens": 77, "trace.sample": 9}}},
        common={"finetune.epochs": 7},
    )


def settings(description, places, **more):
    values = {**case_values(description, CASE, places), **more}
    return training_settings(parameters(read_parameters(places.project), values), places.project)


def test_a_case_sets_what_is_common_then_the_data_sets_then_the_models_values(description, places):
    values = case_values(description, CASE, places)
    assert values["data.path"] == str(places.data / "colours")
    assert values["model.source"] == str(places.models / "folder")
    assert (values["finetune.epochs"], values["prepare.max_tokens"], values["trace.sample"]) == (7, 99, 9)
    one = FineTune(CASE, 3, "freeze-2", "compute", (0.1, 0.2))
    values = training_values(values, one, description)
    assert values["compare.methods"] == ["freeze-2"]
    assert values["compare.seeds"] == [3]
    assert values["finetune.learning_rate"] == {"freeze-2": [0.1, 0.2]}
    assert values["finetune.equal_compute"] is True


def test_settings_hold_no_path_and_are_the_same_wherever_the_files_lie(description, places, tmp_path):
    before = settings(description, places)
    assert str(tmp_path) not in json.dumps(before)
    moved = Places(places.project, (tmp_path / "data").rename(tmp_path / "elsewhere"), places.models)
    assert settings(description, moved) == before


def test_what_decides_a_result_changes_its_settings_and_nothing_else_does(description, places):
    before = settings(description, places)
    same = {"finetune.cache": "off", "finetune.checkpoint_minutes": 1, "plan.last_n": 3, "trace.sample": 8}
    for key, value in same.items():
        assert settings(description, places, **{key: value}) == before, key
    for key, value in {"finetune.epochs": 8, "data.seed": 2, "prepare.max_tokens": 55}.items():
        assert not still_holds(before, settings(description, places, **{key: value})), key
    (places.data / "colours/other.jsonl").write_text("{}")
    assert settings(description, places) == before  # a split that is not read
    (places.data / "colours/test.jsonl").write_text("{}")
    assert not still_holds(before, settings(description, places))


def test_naming_the_rows_leaves_results_that_were_drawn_as_they_are(description, places, tmp_path):
    """The table names the rows that had been drawn; wherever it is, settings hold its name for the dataset alone."""
    before = settings(description, places)
    del before["data"]["examples"]  # as rows of an earlier version have them
    data = description.data_sets["colours"].data
    data["examples"] = {"table": "reports/study/examples.parquet", "name": "colours"}
    values = case_values(description, CASE, places)
    assert values["data.examples"]["table"] == str(places.project / "reports/study/examples.parquet")
    now = settings(description, places)
    assert now["data"]["examples"] == "colours"
    assert still_holds(before, now)
    data["examples"]["name"] = "other"
    assert not still_holds(now, settings(description, places))


def test_docstrings_are_the_same_data_while_their_libraries_are(description, places):
    """Whatever else is in the lock file: a documentation tool that was added once made every row another study's."""
    description.data_sets["colours"].data["source"] = "docstrings"
    before, lock = settings(description, places), places.project / "requirements.lock"
    text = lock.read_text(encoding="utf-8")
    assert sorted(LIBRARIES) == sorted(DISTRIBUTIONS.get(name, name) for name in SOURCES.values())
    assert set(before["data"]["content"]) == set(LIBRARIES) - {"torch"}  # pinned by the machine's own build
    lock.write_text(text + "mkdocs==1.0 \\\n", encoding="utf-8")
    assert settings(description, places) == before
    lock.write_text(re.sub("^sympy==.*", "sympy==0.1", text, flags=re.MULTILINE), encoding="utf-8")
    assert not still_holds(before, settings(description, places))


def test_a_methods_own_parameters_decide_its_results_alone(project):
    params = read(project / "params.yaml")

    def of(method, arm=None, **changes):
        return method_settings(params, changes, method, arm or Arm())

    assert set(of("lora")) == {"lora_rank", "lora_alpha"}
    assert of("last-n") == {"last_n": params["plan"]["last_n"]}
    assert of("freeze-8") == of("full") == of("slow", Arm(method="full")) == {}
    ranked = Arm(method="lora", set={"finetune.lora_rank": 64})
    assert of("wide", ranked) == {**of("lora"), "lora_rank": 64, "set": ranked.set}
    assert of("race")["race"] == params["race"]


def test_plans_depend_on_what_makes_them(description, places):
    values = case_values(description, CASE, places)

    def of(**more):
        return plan_settings(parameters(read_parameters(places.project), {**values, **more}), places.project)

    assert of() == of(**{"evaluate.bootstrap": 50, "finetune.cache": "off"})
    for key, value in {"trace.space": "raw", "plan.gain": "local", "finetune.epochs": 9}.items():
        assert of(**{key: value}) != of()


def test_an_unknown_parameter_is_refused_with_its_name():
    with pytest.raises(UserError, match=r"finetune.epoch: unknown parameter; did you mean epochs\?"):
        parameters(read_parameters(PROJECT), {"finetune.epoch": 3})
    with pytest.raises(UserError, match=r"weather.rain: unknown parameter$"):
        parameters(read_parameters(PROJECT), {"weather.rain": 3})


def test_the_shipped_description_is_valid_and_its_parameters_exist(shared, tmp_path):
    description = read_description(PROJECT / DESCRIPTION)
    for model in description.models.values():
        (tmp_path / (model.path or "")).mkdir(exist_ok=True)
    places, asked = Places(PROJECT, shared / "data", tmp_path), {}
    for case in description.cases():
        asked |= case_values(description, case, places)
    for arm in description.methods.values():
        asked |= arm.set
    parameters(read_parameters(PROJECT), asked)
    assert all((shared / "data" / text).is_file() for text in description.texts.files.values())


def test_label_words_of_the_shipped_description_are_the_data_sets_labels(shared):
    for name, data_set in read_description(PROJECT / DESCRIPTION).data_sets.items():
        words_of = data_set.data.get("label_words")
        if words_of:
            labels = json.loads((shared / "data" / data_set.path / "labels.json").read_text())
            assert sorted(words_of) == sorted(labels), name
            assert len(set(words_of.values())) == len(words_of), name


def test_no_worked_example_of_the_shipped_description_is_in_its_data(shared):
    for name, data_set in read_description(PROJECT / DESCRIPTION).data_sets.items():
        examples = data_set.data.get("template", "").rpartition("{")[0]
        lines = [line for line in examples.splitlines() if len(line) > 20]
        text = "".join(file.read_text() for file in (shared / "data" / data_set.path).glob("*.jsonl")) if lines else ""
        assert not [line for line in lines if line in text], name


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"learning_rates": {0.5: [0.1]}}, "learning_rates has no entry for depth 0"),
        ({"boundaries": [0.5, 1]}, "boundaries lacks 0"),
        ({"data_sets": {"a": {"boundaries": [1]}}}, "boundaries lacks 0"),
        ({"models": {"m": {"layers": 8, "data_sets": ["c"]}}}, r"models\.m\.data_sets: no dataset 'c' is described"),
        ({"methods": {"slow": {"rate_of": "lora"}}}, r"methods\.slow\.rate_of: no rate of 'lora' is tuned here"),
        ({"methods": {"lisa": {"data_sets": ["c"]}}}, r"methods\.lisa\.data_sets: no dataset 'c' is described"),
        ({"budget": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_faulty_description_is_refused(described, changes, fault):
    with pytest.raises(ValueError, match=fault):
        described(**changes)


def test_a_faulty_file_is_named(tmp_path):
    path = tmp_path / "study.yaml"
    with pytest.raises(UserError, match="no such file"):
        read_description(path)
    path.write_text("seeds: []\n")
    with pytest.raises(UserError, match=r"budget_hours: missing"):
        read_description(path)
    with pytest.raises(UserError, match=r"no dataset 'nothing' is described; known: docstrings, trec"):
        read_description(PROJECT / DESCRIPTION, ["nothing"])


@pytest.mark.parametrize(
    ("kept", "now", "holds"),
    [
        ({"a": 1}, {"a": 1, "new": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1, "gone": 1}, {"a": 1}, False),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2], "c": 3}}, True),
        ({"a": {"b": 1}}, {"a": 1}, False),
        ({"balance": True}, {"balance": "all"}, True),  # as release 0.1.0 spelled it
        ({"balance": False}, {"balance": "all"}, False),
    ],
)
def test_settings_hold_while_all_that_they_name_is_the_same(kept, now, holds):
    assert still_holds(kept, now) is holds
