"""A study's headline and tables, written once for the docs page and the report."""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ValidationError

from salf.errors import UserError
from salf.files import read_json, write_json

FILE: Final = "page.json"  # in the study's folder
Cell = tuple[float, str] | str  # a number with its text, or a text


class StudyTable(BaseModel):
    """A captioned table."""

    caption: str
    headings: list[str]
    rows: list[list[Cell]]


class StudyPage(BaseModel):
    """The headline, what was measured, and tables by name; ``report`` names those that the report shows."""

    version: Literal[1] = 1
    headline: str
    scope: str
    tables: dict[str, StudyTable]
    report: list[str]

    @classmethod
    def read(cls, folder: Path) -> "StudyPage | None":
        """Read a study's page; ``None``: there is no study."""
        if not (folder / FILE).exists():
            return None
        try:
            return cls.model_validate(read_json(folder / FILE))
        except ValidationError:
            raise UserError(f"{folder / FILE}: of another version; run: python -m stages.study --analyse") from None

    def write(self, folder: Path) -> None:
        """Write the page into a study's folder."""
        write_json(folder / FILE, self.model_dump())
