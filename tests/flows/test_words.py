"""How a sweep spells parameters for DVC; DVC's own reader of its options, by Hydra, is the judge."""

import json

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.overrides import changed, loaded
from flows.sweep import words
from tests.conftest import PROJECT

BASE = """# a comment
data:
  template: 'costs ${text}'   # DVC would take it for a reference
  label_words: {old: word, 1: one}
  path: data/raw
finetune:
  learning_rate: {full: 0.1, salf+lora: [0.1, 0.2]}
word: '${x}'
"""

# Texts with what shells, Hydra, OmegaConf and YAML give a meaning to.
SIGNS = st.sampled_from(
    ["\\", '"', "'", "${", "}", "ü", "\r\n", "\n", "\r", "\t", " ", ",", "[", "=", ":", "#", "???", "\0"]
)
TEXTS = st.text(max_size=20) | st.lists(SIGNS | st.text(max_size=2), max_size=8).map("".join)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


def as_json(value: object) -> object:
    """A group is handed over as JSON, which has no numbers as names."""
    return json.loads(json.dumps(value))


def as_dvc_reads(path, text: str, values) -> object:
    path.write_bytes(text.encode())
    options = words(text, values)
    assert options[::2] == ["--set-param"] * (len(options) // 2)
    (point,) = get_hydra_sweeps({path.name: options[1::2]})  # one point: no text is taken for a grid
    apply_overrides(path, point[path.name])
    return as_json(loaded(path.read_bytes().decode()))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(["data.label_words", "data.template", "data.label_words.ü b", "finetune", "word"]), value=VALUES
)
def test_any_value_arrives_as_it_is_and_nothing_else_changes(tmp_path, key, value):
    wanted = loaded(BASE)
    *groups, name = key.split(".")
    place = wanted
    for group in groups:
        place = place[group]
    place[name] = value
    assert as_dvc_reads(tmp_path / "params.yaml", BASE, {key: value}) == as_json(wanted)


@pytest.mark.parametrize("text", [BASE, BASE.replace("\n", "\r\n"), "\ufeff" + BASE])
def test_the_shipped_parameters_and_any_line_ends(tmp_path, text):
    shipped = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    for given_text, values in [
        (text, {"data.path": "../größe.csv", "finetune.learning_rate.salf+lora": [0.5]}),
        (shipped, {"data.label_words": {"so good": "größer"}, "compare.seeds": [3], "plan.budget": 5e-05}),
        (text, {"data.label_words": {f"a label of several words {n}": "word" for n in range(9)}}),
    ]:
        meant = as_json(loaded(changed(given_text, values)))
        assert as_dvc_reads(tmp_path / "params.yaml", given_text, values) == meant
