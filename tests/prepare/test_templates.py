import math
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest

from salf.errors import UserError
from stages.prepare.examples import BROKEN, Filler, Template, fill_rows
from stages.prepare.rows import Loaded, RefusedRowError, Row, as_text, one_spelling
from tests.prepare.making import make_data


def loaded(*rows: dict) -> Loaded:
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    return Loaded({"train": [Row(f"r{at}", row) for at, row in enumerate(rows)]}, columns, {})


def test_fills_columns_keeps_braces_and_does_not_read_values_as_templates():
    template = Template("Q: {question} {{x}}\nC: {context}\n{question}!")
    assert template.columns == ("question", "context")
    prompt, texts = template.fill({"question": "a {b}", "context": 3})
    assert prompt == "Q: a {b} {x}\nC: 3\na {b}!"
    assert texts == {"question": "a {b}", "context": "3"}


@pytest.mark.parametrize("broken", ["{text", "text}", "{}", "{text:>9}", "{text!r}", "no column at all"])
def test_broken_templates_are_refused(broken):
    with pytest.raises(UserError, match=r"data\.template"):
        Template(broken)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1"),
        (0.5, "0.5"),
        (True, "true"),
        (None, ""),
        (math.nan, ""),
        ("x", "x"),
        ("1.10", "1.10"),
        (1e3, "1000"),
        (-0.0, "0"),
        (1e-7, "0.0000001"),
        (math.inf, "inf"),
        (2**70, str(2**70)),
        (Decimal("1.00"), "1"),
        (Decimal("1.50"), "1.5"),
        (Decimal("1E+2"), "100"),
        (Decimal("NaN"), ""),
        (np.float32(0.1), "0.1"),
        (np.float64(2), "2"),
        (np.int64(7), "7"),
        (np.bool_(False), "false"),
        (date(2024, 1, 5), "2024-01-05"),
        (datetime(2024, 1, 5, 10), "2024-01-05 10:00:00"),
    ],
)
def test_one_spelling_of_a_value_whatever_the_file_format(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize("value", [[], ["x"], {"a": 1}, (1, 2), b"x", {1}, object()])
def test_what_is_not_text_is_refused(value):
    with pytest.raises(RefusedRowError, match="where text is needed"):
        as_text(value)


@pytest.mark.parametrize(
    ("labels", "respelled"),
    [
        (["0.0", "1.0", "0", "1"], {"0.0": "0", "1.0": "1", "0": "0", "1": "1"}),
        (["1", "1.0", "1.00", "2.5", "-3.0"], {"1": "1", "1.0": "1", "1.00": "1", "2.5": "2.5", "-3.0": "-3"}),
        (["True", "true", "FALSE"], {"True": "true", "true": "true", "FALSE": "false"}),
        (["0.0", "1.0"], {}),  # one spelling each already
        (["1.1", "1.10", "1", "1.0"], {}),  # versions: 1.10 is not 1.1
        (["007", "7", "7.0"], {}),
        (["0", "0.0", "none"], {}),
        (["1e3", "1000", "1000.0"], {}),
        (["1e-05", "0.00001", "-1e+16"], {"1e-05": "0.00001", "0.00001": "0.00001", "-1e+16": "-1" + 16 * "0"}),
        # EKYCSolutions/khmer-ocr-benchmark-dataset#9: what looks the same is one class
        (["cafe\u0301", "caf\u00e9", "tea\u200b"], {"cafe\u0301": "caf\u00e9", "caf\u00e9": "caf\u00e9"}),
        (
            ["not\xa0spam", "not spam", "\ufeffnot spam"],
            dict.fromkeys(("not\xa0spam", "not spam", "\ufeffnot spam"), "not spam"),
        ),
        (["10²", "102", "a", "A", "ﬁ", "fi"], {}),
    ],
)
def test_labels_are_respelled_only_where_one_has_two_spellings(labels, respelled):
    assert one_spelling(labels) == respelled


TURNS = [{"role": "user", "content": "how?"}]


@pytest.mark.parametrize(
    ("changes", "row", "reason"),
    [
        ({}, {"text": TURNS}, "a list in column 'text': name text.0.content in data.template, or set data.messages"),
        (
            {},
            {"text": {"en": "a", "de": "b"}},
            "with the keys 'en', 'de' in column 'text': name text.en in",
        ),
        ({}, {"text": b"raw"}, "with bytes in column 'text'"),
        ({}, {"label": ["x"]}, "a list in column 'label': name label.0 in data.answer_column"),
        ({"group_column": "file"}, {"file": {"id": [4]}}, "'id' in column 'file': name file.id.0 in data.group_column"),
    ],
)
def test_lists_mappings_and_bytes_are_refused_with_what_to_write(changes, row, reason):
    good = {"text": "a", "label": "x", "file": "f"}
    examples, refused = fill_rows(loaded(good, good | row, good | row), Filler(make_data(**changes)))
    assert len(examples["train"]) == 1
    [((split, told), count)] = refused.items()
    assert (split, count) == ("train", 2)
    assert reason in told


HALF = "cut \ud83d"


@pytest.mark.parametrize("column", ["text", "label", "file"])
def test_half_of_a_surrogate_pair_anywhere_refuses_the_row(column):
    good = {"text": "a", "label": "x", "file": "f"}
    data = make_data(group_column="file")
    examples, refused = fill_rows(loaded(good, good | {column: HALF}, good | {column: "\U0001f600"}), Filler(data))
    assert [example.example_id for example in examples["train"]] == ["r0", "r2"]
    assert refused == {("train", BROKEN): 1}


def test_a_path_that_no_row_has_is_an_error_and_one_that_some_lack_is_counted():
    rows = [{"text": "a", "q": {"stem": "how"}, "label": "x"}, {"text": "b", "q": {}, "label": "y"}]
    for template, told in [
        ("{text.nope}", r"data\.template: no row has 'text\.nope': column 'text' holds text"),
        ("{q.steam}", r"no row has 'q\.steam': column 'q' holds an object with the keys 'stem'"),
        ("{text}{none}", r"no row has 'none': column 'none' is empty in all 2 rows"),
        ("{text}{q.\u00b2}", r"no row has 'q\.\u00b2'"),
    ]:
        with pytest.raises(UserError, match=told):
            fill_rows(loaded(*(row | {"none": None} for row in rows)), Filler(make_data(template=template)))
    with pytest.raises(UserError, match=r"data\.group_column: no row has 'q\.file'"):
        fill_rows(loaded(*rows), Filler(make_data(group_column="q.file")))
    filler = Filler(make_data(template="{text}{q.stem}", group_column="q.stem"))
    examples, refused = fill_rows(loaded(*rows), filler)
    assert [example.prompt for example in examples["train"]] == ["ahow", "b"]
    assert not refused
    assert filler.blank == {"q.stem": 1}


@pytest.mark.parametrize(
    ("words", "labels", "found"),
    [
        (
            {1: "good\n", "true": " yes"},
            [1, 1.0, True],
            [("1", "good"), ("1", "good"), ("true", "yes")],
        ),
        ({0: "bad", 1: "good"}, ["0.0", "1.0"], [("0", "bad"), ("1", "good")]),  # as a csv has them
        ({None: "nothing"}, ["1.0", "null"], [("1.0", "1.0"), ("null", "nothing")]),
    ],
)
def test_numbers_and_booleans_find_their_label_words(words, labels, found):
    rows = [{"text": "a", "label": label} for label in labels]
    examples, _ = fill_rows(loaded(*rows), Filler(make_data(label_words=words)))
    assert [(e.label, e.answer) for e in examples["train"]] == found


def test_refuses_rows_without_text_or_label_and_counts_them():
    data = make_data()
    rows = loaded(
        {"text": "a", "label": "x"}, {"text": " \n", "label": "x"}, {"text": None, "label": "x"}, {"text": "b"}
    )
    examples, refused = fill_rows(rows, Filler(data))
    assert [example.example_id for example in examples["train"]] == ["r0"]
    assert refused == {("train", "empty text"): 2, ("train", "without a label"): 1}


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
    rows = loaded({"text": "a", "label": "sports"}, {"text": "", "label": "world"})
    with pytest.raises(UserError, match="'sprots'; labels: sports, world"):
        fill_rows(rows, Filler(data))
    fill_rows(rows, Filler(make_data(label_words={"world": "Earth"})))  # refused rows have their label, too


@pytest.mark.parametrize(
    ("words", "told"),
    [({"x": " \n"}, "the word for 'x' is empty"), ({1: "a", "1": "b"}, "two words for the label '1'")],
)
def test_label_words_that_say_nothing_or_two_things(words, told):
    with pytest.raises(UserError, match=rf"data\.label_words: {told}"):
        Filler(make_data(label_words=words))


def test_a_template_that_names_the_answer_is_refused():
    with pytest.raises(UserError, match="names the answer column 'label': the prompt would hold the answer"):
        Filler(make_data(template="{text} {label}"))


def test_no_rows_at_all():
    with pytest.raises(UserError, match="holds no rows"):
        fill_rows(Loaded({"train": []}, (), {}), Filler(make_data()))


def test_paths_reach_inside_columns_unless_a_column_has_that_very_name():
    row = {"q": {"stem": "how", "parts": ["a", "b"]}, "q.x": "whole", "label": "x"}
    assert Template("{q.stem} {q.parts.1} {q.x}|{q.none}|{q.parts.7}").fill(row)[0] == "how b whole||"
    data = make_data(template="{q.stem}", answer_column="q.parts.0")
    examples, refused = fill_rows(loaded(row, {"q": {"stem": "no parts"}, "label": "x"}), Filler(data))
    assert [(e.text, e.answer) for e in examples["train"]] == [("how", "a")]
    assert refused == {("train", "without a label"): 1}
    with pytest.raises(UserError, match=r"data\.template: no column 'r'; the data has: q, q\.x, label"):
        fill_rows(loaded(row), Filler(make_data(template="{r.stem}")))
