"""How a sweep spells parameters for DVC; DVC's own reader of its options is the judge."""

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from flows.sweep import words
from salf.errors import UserError
from tests.conftest import PROJECT


def read(path):
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "value",
    [
        {"data.template": 'a "b"\nc\\n {text} \\"'},
        {"data.template": "ends \\"},
        {"data.template": "it's {text}, [x]: {{y}} = $ # % ümlaut\n\n"},
        {"data.group_column": None, "data.balance": "none", "finetune.epochs": 7},
        {"compare.methods": ["full", "freeze-8"], "compare.seeds": [3], "plan.budget": 5e-05},
    ],
)
def test_dvc_sets_exactly_what_was_meant(tmp_path, value):
    path = tmp_path / "params.yaml"
    path.write_bytes((PROJECT / "params.yaml").read_bytes())
    apply_overrides(path, words(value)[1::2])
    params = read(path)
    for key, wanted in value.items():
        group, name = key.split(".")
        assert params[group][name] == wanted
    untouched = read(PROJECT / "params.yaml")
    for key in value:
        group, name = key.split(".")
        del params[group][name], untouched[group][name]
    assert params == untouched


@pytest.mark.parametrize("value", [{"data.template": "${x}"}, {"data.label_words": {"1": "x"}}, {"a.b": [{"k": 1}]}])
def test_what_dvc_would_misread_is_refused(value):
    with pytest.raises(UserError, match="cannot be passed to DVC"):
        words(value)
