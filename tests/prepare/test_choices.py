"""How data sets write candidates and the right one, from the hub's own layouts to a csv."""

import json

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from salf.engine.batches import read_examples
from salf.errors import UserError
from stages.common.params import Choices, load_params
from stages.prepare.examples import read_question
from stages.prepare.rows import RefusedRowError
from tests.conftest import write_params
from tests.prepare.making import write_jsonl

TEXTS = ["carbon dioxide", "food", "protection", "water"]


def choices(column="choices", **changes) -> Choices:
    return Choices(**{"column": column, "answer": "text", "score": "character", "first": 0} | changes)


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"choices": TEXTS, "answer": 1}, {}),  # a list and a number
        ({"choices": TEXTS, "answer": 1.0}, {}),
        ({"choices": TEXTS, "answer": "1"}, {}),  # HellaSwag
        ({"choices": TEXTS, "answer": 2}, {"first": 1}),
        ({"choices": TEXTS, "answer": "B"}, {}),  # MMLU's class names
        ({"choices": TEXTS, "answer": " food "}, {}),
        ({"choices": {"text": TEXTS, "label": ["A", "B", "C", "D"]}, "answer": "B"}, {}),  # ARC, CommonsenseQA
        ({"choices": {"text": TEXTS, "label": ["1", "2", "3", "4"]}, "answer": "2"}, {}),  # ARC's other rows
        (
            {"choices": [{"label": m, "text": t} for m, t in zip("wxyz", TEXTS, strict=True)], "answer": "x"},
            {},
        ),
        ({"choices": json.dumps(TEXTS), "answer": "B"}, {}),  # in a csv
        ({"question": {"choices": TEXTS}, "answer": 1}, {"column": "question.choices"}),
        ({**{f"ending{n}": t for n, t in enumerate(TEXTS)}, "answer": 1}, {"column": [f"ending{n}" for n in range(4)]}),
    ],
)
def test_every_spelling_names_the_same_candidate(values, settings):
    question = read_question(values, choices(**settings), "answer")
    assert question.texts == tuple(TEXTS)
    assert question.texts[question.right] == "food"


def test_the_list_has_a_letter_for_every_candidate():
    question = read_question({"choices": TEXTS[:2], "answer": 0}, choices(), "answer")
    assert question.listed == "A. carbon dioxide\nB. food"
    assert question.letters == ("A", "B")


def test_a_row_may_have_fewer_candidates_than_there_are_columns():
    values = {"a": "x", "b": "y", "c": None, "d": "", "answer": "B"}
    assert read_question(values, choices(column=list("abcd")), "answer").texts == ("x", "y")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"choices": ["x"], "answer": 0}, "fewer than two candidates"),
        ({"choices": [str(n) for n in range(27)], "answer": 0}, "more than 26 candidates"),
        ({"choices": ["x", " "], "answer": 0}, "empty candidate"),
        ({"choices": ["x", "x "], "answer": 0}, "two candidates alike"),
        ({"choices": "x or y", "answer": 0}, "candidates that are not a list"),
        ({"answer": 0}, "candidates that are not a list"),
        ({"choices": ["x", "y"]}, "missing answer"),
        ({"choices": ["x", "y"], "answer": 2}, "answer that names no candidate"),
        ({"choices": ["x", "y"], "answer": -1}, "answer that names no candidate"),
        ({"choices": ["x", "y"], "answer": "z"}, "answer that names no candidate"),
        ({"choices": ["2", "1"], "answer": "1"}, None),  # as a text and as a number: the same one
        ({"choices": ["2", "0"], "answer": "0"}, "answer that names two candidates"),
        ({"choices": ["B", "A"], "answer": "A"}, "answer that names two candidates"),
    ],
)
def test_unusable_rows_are_refused_with_a_reason(values, reason):
    if reason is None:
        assert read_question(values, choices(), "answer").right == 1
        return
    with pytest.raises(RefusedRowError, match=f"^{reason}$"):
        read_question(values, choices(), "answer")


def rows(n: int) -> list[dict]:
    return [
        {"q": f"what is {at} and {at + 1}?", "options": [f"sum {2 * at + 1}", f"cat {at}", "a dog"], "answer": at % 3}
        for at in range(n)
    ]


def multiple_choice(**changes) -> dict:
    return {
        "task": "multiple-choice",
        "template": "Question: {q}\nAnswer:",
        "answer_column": "answer",
        "choices": {"column": "options", "answer": "text", "score": "character", "first": 0},
    } | changes


def test_candidates_are_tokenised_as_answers_behind_their_prompt(tmp_path, workspace, base):
    bad = [{"q": "no right one", "options": ["x", "y"], "answer": 5}, {"q": "", "options": ["x", "y"], "answer": 0}]
    write_jsonl(tmp_path / "rows.jsonl", [*rows(60), *bad])
    out = workspace(multiple_choice())
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    assert (meta["task"], meta["labels"], meta["choice_score"]) == ("multiple-choice", [], "character")
    assert {entry["reason"]: entry["count"] for entry in meta["refused"]} == {
        "answer that names no candidate": 1,
        "empty text": 1,
    }
    raw = Tokenizer.from_file(str(base / "tokenizer.json"))
    held = {row["example_id"]: row for row in pq.read_table(out / "test.parquet").to_pylist()}
    examples = read_examples(out, "test")
    assert meta["splits"]["test"]["candidates"] == 3 * len(examples)
    for example in examples:
        assert [one.text for one in example.candidates][1:] == [f"cat {example.text.split()[2]}", "a dog"]
        assert example.answer_ids == next(one.ids for one in example.candidates if one.text == example.answer)
        for one in example.candidates:
            text = f"{held[example.example_id]['prompt']} {one.text}"
            assert raw.encode(text, add_special_tokens=False).ids == [*example.prompt_ids[1:], *one.ids]


def test_letters_stand_for_listed_candidates(tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", rows(60))
    settings = multiple_choice(template="{q}\n{choices}\nAnswer:")
    settings["choices"] = settings["choices"] | {"answer": "letter"}
    out = workspace(settings)
    for example in read_examples(out, "train"):
        listed = dict(line.split(". ") for line in example.text.splitlines()[1:])
        assert [one.text for one in example.candidates] == list(listed) == ["A", "B", "C"]
        number = int(example.text.split()[2])
        assert example.answer == "ABC"[number % 3]
        assert listed["B"] == f"cat {number}"


def test_other_tasks_have_no_candidates(tmp_path, workspace):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"item {at}", "label": "xy"[at % 2]} for at in range(40)])
    out = workspace({})
    assert "candidates" not in pq.read_schema(out / "test.parquet").names
    assert {example.candidates for example in read_examples(out, "test")} == {()}


def test_incomplete_settings_are_named(tmp_path):
    for changes, told in (
        ({"data__task": "multiple-choice"}, "set data.choices.column"),
        (
            {"data__task": "multiple-choice", "data__choices__column": "c", "data__choices__answer": "letter"},
            "the template must show the candidates",
        ),
        (
            {"data__task": "multiple-choice", "data__choices__column": "c", "data__label_words": {"a": "b"}},
            "data.label_words {}",
        ),
        ({"data__choices__first": 2}, "data.choices.first = 2: Input should be 0 or 1"),
    ):
        with pytest.raises(UserError) as caught:
            load_params(write_params(tmp_path, **changes))
        assert told in str(caught.value)
