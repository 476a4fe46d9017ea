"""The embedded dataset: first sentences of the docstrings of installed libraries.

The sources are read as text, never imported. Files are visited in an order drawn from the seed and the file's name,
and reading stops when a library has enough sentences: a fair sample of the files, the same wherever the same versions
are installed. Files that a build generates (version numbers, configuration) or copies (vendored code) are left out:
they differ between builds of one version, or occur in two libraries.
"""

import ast
import importlib.util
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Final

from salf.errors import UserError
from stages.prepare.rows import TRAIN, Loaded, Lost, Row, draw_key

# By the name that people write: as an answer it is what the model has seen most, and with a space in front
# the eight start with different tokens in the embedded model's vocabulary. To the package that is imported.
LIBRARIES: Final = {
    "NetworkX": "networkx",
    "NumPy": "numpy",
    "PyTorch": "torch",
    "SciPy": "scipy",
    "SymPy": "sympy",
    "Transformers": "transformers",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
}
DISTRIBUTIONS: Final = {"sklearn": "scikit-learn"}  # where pip's name is another one
PER_FILE: Final = 4  # most sentences of one file: files full of look-alike methods do not fill a class
WORDS: Final = (6, 32)  # shortest and longest sentence, in words

_SKIPPED_FOLDERS: Final = frozenset(
    {"_C", "_build_utils", "_external", "_externals", "_vendor", "_vendored", "externals", "generated", "test"}
    | {"testing", "_testing", "tests", "vendored_templates", "array_api_compat", "array_api_extra", "_lib"}
)
_SKIPPED_FILES: Final = re.compile(
    r"(_?version(_meson)?|__config__|_distributor_init.*|conftest|setup|test_.*|.*_test)\.py"
)
# Names of the eight libraries, of any of them: the answer is never in the text, nor a wrong one.
_NAMES: Final = re.compile(
    r"torch|hugging ?face|transformers|scipy|pandas|sklearn|scikit|numpy|sympy|networkx|\b(np|pd|nx)\b", re.IGNORECASE
)
_REFERENCE: Final = re.compile(
    r"(see|refer to|alias|deprecated|same as|for (full )?documentation|(this|the) (function|class|method) is dep\w+)\b",
    re.IGNORECASE,
)
_REMNANT: Final = re.compile(
    r">>>|\.\.\.|\.\. |[{}|\\@<>]|%\(|%s|https?:|==|--|\*\*|->|:(param|return|type)"
    r"|\b(Parameters|Args|Returns|Arguments|Copyright|License)\b ?[:-]|\([`'*]|\*(optional|required)\*|^\w+ ?:"
)
# A full stop that ends a sentence: not one after an abbreviation or a single letter.
_SENTENCE_END: Final = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bcf)(?<!\betc)(?<!\b[A-Za-z])[.!?](?=\s|$)")


def read_docstrings(seed: int, per_library: int | None) -> Loaded:
    """Read sentences of every library, as one training split sorted by row name (``torch/nn/functional.py:LINE``).

    A library stops at the file that brings it to ``per_library`` sentences; ``None`` reads all.
    """
    refused = Lost()
    rows = [row for library in LIBRARIES for row in _read_library(library, seed, per_library, refused)]
    rows = _distinct(sorted(rows, key=lambda row: row.example_id), refused)
    # "+cpu" or "+cu130" names the build of a version, not its sources.
    names = [DISTRIBUTIONS.get(package, package) for package in LIBRARIES.values()]
    identity = {"kind": "docstrings", "libraries": {name: version(name).split("+")[0] for name in names}}
    return Loaded({TRAIN: rows}, ("text", "library", "source_file"), identity, +refused)


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring's first paragraph, on one line."""
    paragraph = re.split(r"\n[ \t]*\n", docstring.strip(), maxsplit=1)[0]
    line = " ".join(paragraph.split())
    end = _SENTENCE_END.search(line)
    return line[: end.end()] if end else line


def refusal(sentence: str) -> str | None:
    """Why a sentence is not used; ``None`` where it is."""
    words = sentence.split()
    letters = sum(character.isalpha() or character == " " for character in sentence)
    prose = sentence.isascii() and sentence[:1].isalpha() and letters >= 0.85 * len(sentence)
    faults = {
        "docstring too short": len(words) < WORDS[0],
        "docstring too long": len(words) > WORDS[1],
        "docstring names a library": _NAMES.search(sentence) is not None,
        "docstring only refers elsewhere": _REFERENCE.match(sentence) is not None,
        "docstring holds code or markup": _REMNANT.search(sentence) is not None,
        "docstring is no plain prose": not prose,
    }
    return next((reason for reason, found in faults.items() if found), None)


def docstrings_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring of modules, public classes and public functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in other people's strings
        stack: list[ast.AST] = [ast.parse(source)]
    while stack:
        node = stack.pop()
        body = getattr(node, "body", [])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node, clean=False)
        ):
            yield body[0].lineno, text
        stack += [child for child in body if hasattr(child, "body") and not getattr(child, "name", "").startswith("_")]


def _read_library(library: str, seed: int, wanted: int | None, refused: Lost) -> list[Row]:
    spec = importlib.util.find_spec(LIBRARIES[library])  # a top-level name: found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data.source = docstrings: {library} is not installed; install the lock file (make setup)")
    root = Path(spec.submodule_search_locations[0])
    rows: list[Row] = []
    paths = [PurePosixPath(path.relative_to(root.parent).as_posix()) for path in root.rglob("*.py")]
    used = [p for p in paths if not _SKIPPED_FOLDERS.intersection(p.parts) and not _SKIPPED_FILES.fullmatch(p.name)]
    for name in sorted(map(str, used), key=lambda name: draw_key(seed, name)):
        if wanted is not None and len(rows) >= wanted:
            break
        kept = _read_file(root.parent / name, refused)
        drawn = sorted(kept.items(), key=lambda item: draw_key(seed, f"{name}:{item[1]}"))
        refused[TRAIN, "docstring beyond those drawn of its file"] += max(0, len(drawn) - PER_FILE)
        rows += [
            Row(f"{name}:{line}", {"text": text, "library": library, "source_file": name})
            for text, line in drawn[:PER_FILE]
        ]
    return rows


def _read_file(path: Path, refused: Lost) -> dict[str, int]:
    """Usable sentence → its line."""
    kept: dict[str, int] = {}
    try:
        for line, docstring in docstrings_of(path.read_text(encoding="utf-8")):
            sentence = first_sentence(docstring)
            if reason := refusal(sentence):
                refused[TRAIN, reason] += 1
            else:
                kept.setdefault(sentence, line)
    except (SyntaxError, UnicodeDecodeError, RecursionError):
        refused[TRAIN, "source file that Python cannot read"] += 1
    return kept


def _distinct(rows: list[Row], refused: Lost) -> list[Row]:
    """Keep one row of a sentence that a library uses twice, none of one that two libraries use."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(row.values["text"].lower(), []).append(row)
    kept = []
    for group in alike.values():
        if len({row.values["library"] for row in group}) > 1:
            refused[TRAIN, "docstring of two libraries"] += len(group)
        else:
            refused[TRAIN, "docstring seen before"] += len(group) - 1
            kept.append(group[0])
    return kept
