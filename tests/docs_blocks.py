"""The fenced blocks of README.md and of the pages in docs/, to be run as a reader would."""

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import PROJECT


def text_of(page: str, section: str | None = None) -> str:
    """A page of docs/, or README.md; of a section, from its heading to the next one of its level."""
    path = PROJECT / page if page == "README.md" else PROJECT / "docs" / page
    text = path.read_text(encoding="utf-8")
    if section is None:
        return text
    return re.search(rf"^## {re.escape(section)}\n.*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)[0]


def blocks(page: str, language: str | None = None, section: str | None = None) -> list[tuple[str, str]]:
    """(language, text) of the blocks in their order, of one language or of all, of a section or of the page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text_of(page, section), flags=re.MULTILINE | re.DOTALL)
    return [(kind, block) for kind, block in found if language in (None, kind)]


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command in the page's shell blocks."""
    for _, block in blocks(page, "sh"):
        for line in re.sub(r"\\\n", "", block).splitlines():
            # bash's $'...' turns \n into a line break, which shlex does not know.
            plain = re.sub(r"\$'([^']*)'", lambda quoted: "'" + quoted[1].replace("\\n", "\n") + "'", line)
            words = shlex.split(plain, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            if words:
                yield words


def overrides(command: list[str], option: str) -> list[str]:
    """The values of every occurrence of an option."""
    return [value for word, value in itertools.pairwise(command) if word == option]


def run_python(block: str, names: dict, page: str) -> None:
    """Run a block with the names that earlier ones left."""
    exec(compile(block, str(Path("docs") / page), "exec"), names)


def run_page(page: str, root: Path) -> dict:
    """Run all Python blocks of a page in a folder, and return the names that they left."""
    names: dict = {}
    with contextlib.chdir(root):
        for _, block in blocks(page, "python"):
            run_python(block, names, page)
    return names
