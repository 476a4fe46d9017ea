"""Every method has a colour, and boundaries given by hand have one."""

from itertools import combinations

import pytest
from matplotlib.text import Text

from stages.common.figures import INKS, MUTED, colour, marker, panel, place_labels, variable
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


def test_labels_hide_neither_each_other_nor_points_where_there_is_room():
    points = [(x / 6, y / 6) for x in range(1, 6) for y in range(1, 6)]
    drawn = []

    def paint(axes):
        axes.set(xlim=(0, 1), ylim=(0, 1))
        place_labels(axes, [(0.5, 0.5, "one", MUTED), (0.5, 0.5, "two", MUTED), (1.0, 0.5, "three", MUTED)], points)
        drawn.append(axes)

    panel("name", "Title", "Described", paint)
    (axes,) = drawn
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert all(axes.bbox.count_contains(box.corners()) == 4 for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert sum(box.count_contains(axes.transData.transform(points)) for box in boxes) == 0
