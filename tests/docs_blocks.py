"""The fenced blocks of a page in docs/, to be run as a reader would."""

import re
from pathlib import Path

from tests.conftest import PROJECT


def blocks(page: str, language: str | None = None) -> list[tuple[str, str]]:
    """(language, text) of the page's blocks in their order, of one language or of all."""
    text = (PROJECT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(kind, block) for kind, block in found if language in (None, kind)]


def run_python(block: str, names: dict, page: str) -> None:
    """Run a block with the names that earlier ones left."""
    exec(compile(block, str(Path("docs") / page), "exec"), names)
