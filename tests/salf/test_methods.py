"""The grammar of methods' names, and which learning rate a name takes."""

import math
import re

import pytest

from salf.methods import SLOTS, WORDS, Method, Word, checked, frozen_by_name, method_of, rate_entry
from salf.settings import Finetune
from tests.conftest import PROJECT

SELECTORS = ("salf", "full", "none", "last-n", "random")


@pytest.mark.parametrize(
    ("name", "method", "boundary"),
    [
        ("full", Method("full"), 0),
        ("lora", Method("full", ("lora",)), 0),
        ("full+lora", Method("full", ("lora",)), 0),
        ("salf", Method("salf"), None),
        ("last-n+lora", Method("last-n", ("lora",)), None),
        ("freeze-0", Method("freeze-0"), 0),
        ("freeze-17", Method("freeze-17"), 17),
        ("freeze-8+lora", Method("freeze-8", ("lora",)), 8),
        ("full+answer", Method("full", ("answer",)), 0),
        ("freeze-8+answer+lora", Method("freeze-8", ("answer", "lora")), 8),
        ("first-n", Method("first-n"), 0),
        ("lisa", Method("lisa"), 0),
    ],
)
def test_a_name_is_a_scope_and_a_way(name, method, boundary):
    assert checked(name, SELECTORS) == name
    assert method_of(name) == method
    assert method_of(name).boundary == boundary


@pytest.mark.parametrize(
    "name", ["", "salv", "freeze", "freeze-", "freeze-x", "freeze-08", "freeze--1", "freeze-1.5", "+lora", "lora+lora"]
)
def test_other_names_are_refused_with_the_allowed_forms(name):
    with pytest.raises(ValueError, match=r"salf, full, none, last-n, random.*freeze-<k>.*\+lora.*first-n; lisa"):
        checked(name, SELECTORS)


@pytest.mark.parametrize("name", ["first-n+lora", "lisa+lora"])
def test_methods_that_train_weights_alone_take_no_adapters(name):
    with pytest.raises(ValueError, match=r"cannot be combined with lora: it acts above a boundary.*; leave out \+lora"):
        checked(name, SELECTORS)


@pytest.mark.parametrize("name", ["first-n+answer", "lisa+answer"])
def test_positions_need_a_boundary(name):
    with pytest.raises(ValueError, match=r"cannot be combined with answer: .*; leave out \+answer"):
        checked(name, SELECTORS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full+lora+answer", r"words have an order; write full\+answer\+lora"),
        ("full+all", "no such method; allowed"),
        ("full+answer+answer", "answer and answer both decide the positions: leave one out"),
        ("full+extrap+extragradient", "extrap and extragradient both decide the update: leave one out"),
    ],
)
def test_a_slot_takes_one_word_and_words_have_an_order(name, expected):
    with pytest.raises(ValueError, match=expected):
        checked(name, SELECTORS)


@pytest.fixture
def words(monkeypatch):
    """A word of every kind of entry, whatever is registered."""
    for word in (
        Word("noise", "objective", "x:y", needs=("lora",)),
        Word("blind", "gradient", "x:y", inherits_rate=False, refused={"update": "it moves the weights itself"}),
    ):
        monkeypatch.setitem(WORDS, word.name, word)


def test_words_name_what_they_need_and_what_they_refuse(words):
    assert checked("full+lora+noise", SELECTORS)
    assert checked("full+lora+blind", SELECTORS)
    for name, expected in {
        "full+answer+lora+noise": r"noise has not been shown to work with answer: leave out \+noise",
        "full+noise": r"noise needs lora: add \+lora",
        "full+blind+extrap": r"extrap cannot be combined with blind: it moves the weights itself; leave out \+blind",
    }.items():
        with pytest.raises(ValueError, match=expected):
            checked(name, SELECTORS)


def test_settings_task_and_model_are_refused_by_the_same_table(words, monkeypatch):
    monkeypatch.setitem(WORDS, "flat", Word("flat", "gradient", "x:y", refused={"padded": "it knows no padding"}))
    method = method_of("full+flat")
    assert method.refusal({"experts": "a mixture"}) is None
    assert method.refusal({"padded": "this model"}) == (
        "this model cannot be combined with flat: it knows no padding; leave out +flat"
    )


@pytest.mark.parametrize(
    ("name", "boundary", "entry"),
    [
        ("half+lora+noise", 4, "half+lora"),
        ("salf+lora+noise", 4, "salf+lora"),
        ("full+lora+noise", 0, "lora"),
        ("half+noise", 4, "salf+noise"),
        ("half+extrap", 4, "salf"),
        ("half+blind", 4, None),
        ("salf+blind", 4, None),
        ("full+blind+extrap", 0, "full+blind"),
    ],
)
def test_words_inherit_the_rate_of_the_method_without_them_or_need_one(name, boundary, entry, words):
    entries = ["full", "salf", "lora", "salf+lora", "half+lora", "salf+noise", "full+blind"]
    assert rate_entry(name, boundary, entries) == entry


def test_a_word_that_fills_two_slots_leaves_neither_to_another(monkeypatch):
    monkeypatch.setitem(WORDS, "blind", Word("blind", "gradient", "math:floor", also={"update": "math:ceil"}))
    monkeypatch.setitem(WORDS, "ahead", Word("ahead", "update", "math:sqrt"))
    method = method_of(checked("full+lora+blind", SELECTORS))
    assert {slot: method.word(slot).implementation(slot) for slot in ("gradient", "update")} == {
        "gradient": math.floor,
        "update": math.ceil,
    }
    with pytest.raises(ValueError, match="blind and ahead both decide the update: leave one out"):
        checked("full+blind+ahead", SELECTORS)


def test_only_a_plain_number_of_layers_is_frozen_by_name():
    assert [frozen_by_name(scope) for scope in ("freeze-12", "freeze-012", "freeze", "full")] == [12, None, None, None]


@pytest.mark.parametrize(
    ("name", "boundary", "entry"),
    [
        ("full", 0, "full"),
        ("freeze-0", 0, "full"),
        ("freeze-8", 8, "freeze-8"),
        ("freeze-9", 9, "salf"),
        ("random", 4, "salf"),
        ("random", 0, "full"),
        ("lisa", 0, "full"),
        ("full+lora", 0, "lora"),
        ("freeze-8+lora", 8, "salf+lora"),
        ("freeze-0+lora", 0, "lora"),
        ("freeze-8+answer", 8, "salf+answer"),
        ("freeze-0+answer", 0, "full+answer"),
    ],
)
def test_a_method_takes_its_own_rate_or_that_of_the_nearest_kind(name, boundary, entry):
    assert (
        rate_entry(name, boundary, ["full", "salf", "lora", "salf+lora", "freeze-8", "full+answer", "salf+answer"])
        == entry
    )


def test_without_an_entry_there_is_no_rate():
    assert rate_entry("freeze-9", 9, ["full", "lora", "salf+lora"]) is None
    assert rate_entry("freeze-9+lora", 9, ["full", "salf", "lora"]) is None
    assert rate_entry("full+answer+lora", 0, ["full", "lora", "full+answer"]) is None


def test_the_page_of_techniques_has_every_word_its_slot_and_its_settings_with_their_defaults():
    page = (PROJECT / "docs/techniques.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### ([^\n]*)\n(.*?)(?=^##|\Z)", page, flags=re.MULTILINE | re.DOTALL))
    documented = {word: text for heading, text in sections.items() for word in re.findall(r"`\+([\w-]+)`", heading)}
    plain = {next(word.name for word in WORDS.values() if word.slot == slot) for slot in SLOTS}
    assert documented.keys() == WORDS.keys() - plain
    table = dict(re.findall(r"^\| (\w+) \| .* \| (`.*`) \|$", page, flags=re.MULTILINE))
    for name, text in documented.items():
        word = WORDS[name]
        assert f"`{name}`" in table[word.slot]
        field = Finetune.model_fields.get(word.settings)
        for setting, value in field.default if field and name != "answer" else ():
            assert f"`{setting}` ({'null' if value is None else value}" in text
