"""Which files of a folder hold a split: one file, numbered parts of one, or a folder of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from salf.errors import UserError
from stages.prepare.files import SUFFIXES

TEXT: Final = ".txt"

_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>\d+)-of-(?P<parts>\d+)")  # the hub's way to number them


def split_files(folder: Path, name: str) -> list[Path]:
    """The files of a split, in order.

    ``train.csv``; or ``train-00000-of-00002.parquet`` and its like; or a folder ``train`` with files of any known
    format, or with a folder of ``.txt`` files for every class.

    Raises:
        UserError: there are none, the split stands in two forms, or a numbered part is missing.
    """
    whole = [[file] for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    found = [form for form in (*whole, _parts(folder, name), _inside(folder / name)) if form]
    if len(found) == 1:
        return found[0]
    if found:
        files = ", ".join(form[0].relative_to(folder).as_posix() for form in found)
        raise UserError(f"{folder}: split {name!r} stands in two files: {files}; keep one")
    raise UserError(
        f"{folder}: no file for split {name!r} ({' or '.join(SUFFIXES)}); found {_listed(folder)}; "
        "name the splits in data.splits (null: carved out of the training split)"
    )


def _parts(folder: Path, name: str) -> list[Path]:
    matched = [(_PART.fullmatch(file.stem), file) for file in _data_files(folder.iterdir())]
    parts = [(match, file) for match, file in matched if match and match["name"] == name]
    if parts and {int(match["number"]) for match, _ in parts} != set(range(int(parts[0][0]["parts"]))):
        raise UserError(f"{folder}: split {name!r} has {len(parts)} of {int(parts[0][0]['parts'])} parts")
    return [file for _, file in parts]


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [file for file in _data_files(folder.rglob("*")) if not _is_hidden(file, folder)]
    texts = (file for file in folder.glob(f"*/*{TEXT}") if file.is_file())
    return files or sorted(file for file in texts if not _is_hidden(file, folder))


def _is_hidden(file: Path, folder: Path) -> bool:
    """Whether it is a copy or a by-product of some program: ``.ipynb_checkpoints/a.csv``, ``._a.csv``."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _data_files(files: Iterable[Path]) -> list[Path]:
    return sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.is_file())


def _listed(folder: Path) -> str:
    held = [file.name for file in _data_files(folder.iterdir())]
    held += [f"{inner.name}/" for inner in sorted(folder.iterdir()) if inner.is_dir()]
    return ", ".join(held) or "no data file"
