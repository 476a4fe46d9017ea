"""Writes, reads and hashes artifacts.

Nothing half-written ever carries an artifact's name: files and folders are made aside, flushed to
disk and renamed. JSON is canonical (sorted keys, shortest exact floats, one trailing newline), so
that the same inputs give the same bytes.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, Final

from salf.errors import UserError

WORK_FOLDER: Final = ".work"  # next to the artifact, ignored by git and DVC, for unfinished work
_CHUNK: Final = 1 << 20


@contextmanager
def replacing_file(path: Path, *, sealed: bool = False) -> Iterator[Path]:
    """Yield a path aside that takes ``path``'s place when the block ends well; ``sealed``: see :func:`sealed_file`."""
    aside = _aside(path)
    try:
        yield aside
        _flush(aside)
        before = _seals(path) if sealed else []
        target = _seal(path, aside) if sealed else path
        os.replace(aside, target)
        for file in before:
            if file != target:
                file.unlink()
    except OSError as error:  # pyarrow's name no file
        error.filename = error.filename or str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder aside; when the block ends well, it takes ``path``'s place."""
    aside = _aside(path)
    if aside.exists():  # left behind by a run that was killed
        shutil.rmtree(aside)
    aside.mkdir()
    try:
        yield aside
        for work in list(aside.rglob(WORK_FOLDER)):  # of the files that were made inside, one by one
            shutil.rmtree(work)
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sealed_file(path: Path) -> Path | None:
    """The whole file that :func:`replacing_file` sealed for ``path``, if there is one.

    A file that was cut, changed or put in another's place is not returned; a line names it.
    """
    for file in sorted(_seals(path), key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if file == _seal(path, file):
            return file
        print(f"{file}: damaged, its checksum does not match; this work is repeated", flush=True)
    return None


def checksum(path: Path, begun: int = 0, start: int = 0) -> int:
    """CRC-32 of a file's bytes from ``start`` on, continuing the CRC-32 ``begun``."""
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            begun = zlib.crc32(chunk, begun)
    return begun


def work_folder(path: Path, fingerprint: str) -> Path:
    """A folder for unfinished work on the artifact ``path``, kept between runs of one fingerprint; others go."""
    room = path.parent / WORK_FOLDER
    mine = room / f"{path.name}-{fingerprint[:16]}"
    for other in room.glob(f"{path.name}-*"):
        if other != mine:
            shutil.rmtree(other, ignore_errors=True)
    mine.mkdir(parents=True, exist_ok=True)
    return mine


def lasting(path: Path) -> Path:
    """The absolute path, for records that outlive this run: one in a copy that DVC made becomes the project's own."""
    whole, here = Path(os.path.abspath(path.expanduser())), Path.cwd()
    project, copies, _ = str(here).partition("/.dvc/tmp/exps/")
    if not copies or not str(whole).startswith(project + copies):
        return whole
    return Path(os.path.normpath(Path(project, os.path.relpath(whole, here))))


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON; a NaN or an infinity is a bug and raises ``ValueError``."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it (dvc repro)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); run the stage that makes it again") from None


def require(path: Path, made_by: str) -> Path:
    """Return ``path`` where it exists."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; it is made by: dvc repro {made_by}")
    return path


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex SHA-256 over the relative names and hashes of all files below a folder."""
    return digest_of({str(f.relative_to(folder)): sha256_file(f) for f in sorted(folder.rglob("*")) if f.is_file()})


def code_hashes() -> dict[str, str]:
    """Hex SHA-256 of every file of the library and the stages: unfinished work belongs to the code that began it."""
    root = Path(__file__).parents[1]
    return {str(file): sha256_file(file) for room in ("salf", "stages") for file in sorted((root / room).rglob("*.py"))}


def git(folder: Path, *arguments: str) -> bytes | None:
    """The output of git in a folder; ``None`` where it fails. It takes no optional lock that another git may need."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-like value, independent of the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def significant(value: float, digits: int = 10) -> float:
    """Round to ``digits`` significant digits: variations of numerical libraries stay out of the bytes."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def rounded(value: Any) -> Any:
    """A value with every float in it, in dictionaries and lists too, rounded to significant digits."""
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def _seal(path: Path, file: Path) -> Path:
    """``path`` with the checksum of ``file``'s content in its name, different for every ``path``."""
    return path.with_name(f"{path.stem}-{checksum(file, zlib.crc32(path.name.encode())):08x}{path.suffix}")


def _seals(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{escape(path.stem)}-{'[0-9a-f]' * 8}{escape(path.suffix)}"))


def _aside(path: Path) -> Path:
    room = path.parent / WORK_FOLDER
    room.mkdir(parents=True, exist_ok=True)
    return room / f"{path.name}.partial"


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
