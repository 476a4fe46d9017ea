import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from salf.errors import UserError
from stages.prepare import docstrings
from stages.prepare.docstrings import (
    LIBRARIES,
    PER_FILE,
    docstrings_of,
    first_sentence,
    read_docstrings,
    refusal,
)
from stages.prepare.rows import Loaded
from tests.prepare.making import PROJECT

PER_LIBRARY = 12
LIBRARIES_OF_OURS = {"one": "lib_one_here", "two": "lib_two_here"}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return read_docstrings(seed=1, per_library=PER_LIBRARY)


def test_every_library_gives_about_as_many(loaded):
    counts = Counter(row.values["library"] for row in loaded.rows["train"])
    assert set(counts) == set(LIBRARIES)
    assert all(PER_LIBRARY - 3 <= n < PER_LIBRARY + PER_FILE for n in counts.values())


def test_sentences_stand_where_their_name_says_and_do_not_name_the_answer(loaded):
    for row in loaded.rows["train"]:
        file, line = row.example_id.rsplit(":", 1)
        text = row.values["text"]
        assert row.values["source_file"] == file
        package, rest = file.split("/", 1)
        assert package == LIBRARIES[row.values["library"]]
        root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
        source = (root / rest).read_text(encoding="utf-8").splitlines()
        assert text.split()[-1].rstrip(".") in " ".join(source[int(line) - 1 : int(line) + 9])
        assert row.values["library"].lower() not in text.lower()
        assert not re.search(r"torch|transformers|scipy|pandas|sklearn|scikit|numpy|sympy|networkx", text, re.I)
        assert "/tests/" not in f"/{rest}"


def test_texts_are_distinct_and_files_do_not_fill_a_class(loaded):
    texts = [row.values["text"].lower() for row in loaded.rows["train"]]
    assert len(set(texts)) == len(texts)
    assert max(Counter(row.values["source_file"] for row in loaded.rows["train"]).values()) <= PER_FILE


def test_versions_name_no_build(loaded):
    assert set(loaded.identity["libraries"]) == {*LIBRARIES.values(), "scikit-learn"} - {"sklearn"}
    assert not any("+" in version for version in loaded.identity["libraries"].values())


@pytest.mark.slow
def test_another_process_with_another_hash_seed_gives_the_same_bytes():
    script = (
        "import hashlib, json\n"
        "from stages.prepare.docstrings import read_docstrings\n"
        "loaded = read_docstrings(1, 4)\n"
        "rows = [[row.example_id, dict(row.values)] for row in loaded.rows['train']]\n"
        "print(hashlib.sha256(json.dumps([rows, sorted(loaded.refused.items())]).encode()).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=PROJECT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    rows = read_docstrings(1, 4)
    here = json.dumps([[[r.example_id, dict(r.values)] for r in rows.rows["train"]], sorted(rows.refused.items())])
    assert digests == {hashlib.sha256(here.encode()).hexdigest() + "\n"}


def test_the_seed_draws_other_files(loaded):
    other = read_docstrings(seed=2, per_library=4)
    assert not {r.example_id for r in other.rows["train"]} <= {r.example_id for r in loaded.rows["train"]}


def test_docstrings_of_modules_public_classes_and_functions():
    source = '''"""Module."""
def public():
    """Function."""
    def inner():
        """Inner."""
def _private():
    """Private."""
class Thing:
    """Class."""
    async def method(self):
        """Method."""
    def __len__(self):
        """Length."""
if True:
    def conditional():
        """Conditional."""
def none():
    x = "no docstring"
'''
    found = dict(docstrings_of(source))
    assert found == {
        1: "Module.",
        3: "Function.",
        5: "Inner.",
        9: "Class.",
        11: "Method.",
        16: "Conditional.",
    }


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("\n    Return the\n    sum.\n\n    Further down.\n", "Return the sum."),
        ("Return the sum. Another sentence.", "Return the sum."),
        ("Use a basis, e.g. Hermite, i.e. one of many. Done.", "Use a basis, e.g. Hermite, i.e. one of many."),
        ("Version 1.5 of the file", "Version 1.5 of the file"),
        ("Solve A x = b for matrix A. then stop", "Solve A x = b for matrix A. then stop"),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("Return the sum of all elements along an axis.", None),
        ("Return the sum.", "docstring too short"),
        ("word " * 40, "docstring too long"),
        ("Convert the tensor to a NumPy array and return it.", "docstring names a library"),
        ("Alias of np arrays that are kept for old code.", "docstring names a library"),
        ("Wrap the PyTorch module so that it can be traced.", "docstring names a library"),
        ("See the user guide for more details on this.", "docstring only refers elsewhere"),
        ("Deprecated in favour of another function with more options.", "docstring only refers elsewhere"),
        (">>> add one to two and print three at last", "docstring holds code or markup"),
        ("Return {klass} with the given values in all places.", "docstring holds code or markup"),
        ("Über alle Werte wird hier die Summe gebildet.", "docstring is no plain prose"),
        ("1 2 3 4 5 6 7 8 9 or more", "docstring is no plain prose"),
    ],
)
def test_refusals_have_reasons(sentence, reason):
    assert refusal(sentence) == reason


@pytest.fixture
def tiny_libraries(tmp_path, monkeypatch):
    """Two packages of our own in the place of the eight."""

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr(docstrings, "LIBRARIES", LIBRARIES_OF_OURS)
    monkeypatch.setattr(docstrings, "version", lambda library: f"{library}-1.0+cpu")
    monkeypatch.syspath_prepend(tmp_path)
    for package in ("lib_one_here", "lib_two_here"):
        write(f"{package}/__init__.py", "raise RuntimeError('imported')")
    return write


def test_generated_vendored_test_and_broken_files_are_left_out(tiny_libraries):
    for name in ("version.py", "_vendor/a.py", "tests/b.py", "test_c.py", "externals/d.py", "x/testing/e.py"):
        tiny_libraries(f"lib_one_here/{name}", '"""This one stands in a file that is left out."""')
    tiny_libraries("lib_one_here/kept.py", '"""This one stands in a file that is read."""')
    tiny_libraries("lib_one_here/broken.py", "def (:")
    loaded = read_docstrings(1, None)
    assert [row.example_id for row in loaded.rows["train"]] == ["lib_one_here/kept.py:1"]
    assert loaded.refused["train", "source file that Python cannot read"] == 1
    assert loaded.identity["libraries"] == {name: f"{name}-1.0" for name in ("lib_one_here", "lib_two_here")}


def test_a_sentence_of_two_libraries_is_of_none(tiny_libraries):
    for package in ("lib_one_here", "lib_two_here"):
        tiny_libraries(f"{package}/a.py", '"""Both libraries say this in the same words."""')
        tiny_libraries(f"{package}/b.py", f'"""Only the library called {package} says this."""')
    tiny_libraries("lib_one_here/c.py", '"""ONLY the library called lib_one_here says this."""')
    loaded = read_docstrings(1, None)
    assert len(loaded.rows["train"]) == 2
    assert loaded.refused["train", "docstring of two libraries"] == 2
    assert loaded.refused["train", "docstring seen before"] == 1


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(docstrings, "LIBRARIES", {"absent": "no_such_package_anywhere"})
    with pytest.raises(UserError, match="absent is not installed"):
        read_docstrings(1, None)
