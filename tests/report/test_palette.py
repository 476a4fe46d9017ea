"""Every method has a colour, and boundaries given by hand are one thing in the figures."""

import pytest

from stages.common.figures import INKS, MUTED, colour, marker, variable
from stages.report.figures import grid_of, labels_of, numbers_words
from tests.conftest import PROJECT


@pytest.mark.parametrize(
    ("method", "ink"),
    [
        ("full", "full"),
        ("lora", "lora"),
        ("full+lora", "lora"),
        ("salf+lora", "salf-lora"),
        ("freeze-3", "freeze"),
        ("freeze-17", "freeze"),
    ],
)
def test_methods_of_a_kind_have_one_colour(method, ink):
    assert (colour(method), variable(method)) == (INKS[ink].stand_in, INKS[ink].variable)


def test_every_method_with_a_colour_has_it_in_tables_too():
    style = (PROJECT / "stages/report/style.css").read_text(encoding="utf-8")
    for name in set(INKS) - {"ink", "muted", "rule", "card"}:
        assert f".method.{name} {{ --method: var(--{name}); }}" in style


def test_methods_without_a_colour_of_their_own_are_muted_and_have_a_mark():
    assert {colour(name) for name in ("lisa", "first-n", "probe", "freeze-3+lora", "last-n+lora")} == {MUTED}
    marks = [marker(name) for name in ("full", "salf", "lora", "freeze-3", "freeze-3+lora", "first-n", "lisa")]
    assert len(set(marks)) == len(marks)


def test_a_small_grid_keeps_its_names_and_a_large_one_is_numbered():
    few, many = ["full", "freeze-15", "freeze-8"], ["salf", *(f"freeze-{k}" for k in (20, 0, 5, 10))]
    assert grid_of(few) == ["freeze-8", "freeze-15"]
    assert labels_of(few) == {name: name for name in few}
    assert numbers_words(labels_of(few)) == ""
    assert labels_of(many) == {"salf": "salf", "freeze-20": "20", "freeze-0": "0", "freeze-5": "5", "freeze-10": "10"}
    assert "20, 0, 5, 10" in numbers_words(labels_of(many))
