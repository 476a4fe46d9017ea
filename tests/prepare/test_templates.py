import math

import pytest

from stages.common.command import UserError
from stages.prepare.examples import Filler, fill_rows
from stages.prepare.rows import Loaded, Row, as_text
from stages.prepare.templates import parse_template
from tests.prepare.making import make_data


def loaded(*rows: dict) -> Loaded:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    return Loaded({"train": [Row(f"r{at}", row) for at, row in enumerate(rows)]}, columns, {})


def test_fills_columns_keeps_braces_and_does_not_read_values_as_templates():
    template = parse_template("Q: {question} {{x}}\nC: {context}\n{question}!")
    assert template.columns == ("question", "context")
    assert template.fill({"question": "a {b}", "context": 3}) == "Q: a {b} {x}\nC: 3\na {b}!"
    assert template.text({"question": "a {b}", "context": 3}) == "a {b}\n3"


@pytest.mark.parametrize("broken", ["{text", "text}", "{}", "{text:>9}", "{text!r}", "no column at all"])
def test_broken_templates_are_refused(broken):
    with pytest.raises(UserError, match=r"data\.template"):
        parse_template(broken)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (0.5, "0.5"), (True, "true"), (None, ""), (math.nan, ""), ("x", "x")],
)
def test_one_spelling_of_a_value_whatever_the_file_format(value, text):
    assert as_text(value) == text


def test_numbers_and_booleans_find_their_label_words():
    data = make_data(label_words={"1": "good", "true": "yes"})
    examples, _ = fill_rows(
        loaded({"text": "a", "label": 1}, {"text": "b", "label": 1.0}, {"text": "c", "label": True}),
        Filler(data),
    )
    assert [(e.label, e.answer) for e in examples["train"]] == [("1", "good"), ("1", "good"), ("true", "yes")]


def test_refuses_rows_without_text_or_label_and_counts_them():
    data = make_data()
    rows = loaded(
        {"text": "a", "label": "x"}, {"text": " \n", "label": "x"}, {"text": None, "label": "x"}, {"text": "b"}
    )
    examples, refused = fill_rows(rows, Filler(data))
    assert [example.example_id for example in examples["train"]] == ["r0"]
    assert refused == {"empty text": 2, "missing label": 1}


def test_unknown_columns_are_named_with_the_known_ones():
    rows = loaded({"sentence": "a", "label": "x"})
    with pytest.raises(UserError, match=r"data\.template: no column 'text'; the data has: sentence, label"):
        fill_rows(rows, Filler(make_data()))
    with pytest.raises(UserError, match=r"data\.answer_column: no column 'gold'"):
        fill_rows(rows, Filler(make_data(template="{sentence}", answer_column="gold")))
    with pytest.raises(UserError, match=r"data\.group_column: no column 'file'"):
        fill_rows(rows, Filler(make_data(template="{sentence}", group_column="file")))


def test_a_label_word_for_a_label_that_does_not_occur_is_a_typing_mistake():
    data = make_data(label_words={"sprots": "sports"})
    with pytest.raises(UserError, match="'sprots'; labels: sports, world"):
        fill_rows(
            loaded({"text": "a", "label": "sports"}, {"text": "b", "label": "world"}),
            Filler(data),
        )


def test_no_rows_at_all():
    with pytest.raises(UserError, match="holds no rows"):
        fill_rows(Loaded({"train": []}, (), {}), Filler(make_data()))


def test_paths_reach_inside_columns_unless_a_column_has_that_very_name():
    row = {"q": {"stem": "how", "parts": ["a", "b"]}, "q.x": "whole", "label": "x"}
    assert parse_template("{q.stem} {q.parts.1} {q.x}|{q.none}|{q.parts.7}").fill(row) == "how b whole||"
    data = make_data(template="{q.stem}", answer_column="q.parts.0")
    examples, refused = fill_rows(loaded(row, {"q": {"stem": "no parts"}, "label": "x"}), Filler(data))
    assert [(e.text, e.answer) for e in examples["train"]] == [("how", "a")]
    assert refused == {"missing label": 1}
    with pytest.raises(UserError, match=r"data\.template: no column 'r'; the data has: q, q\.x, label"):
        fill_rows(loaded(row), Filler(make_data(template="{r.stem}")))
