"""Clears away what a killed DVC left half-written, and what a corrupt cache would bring back.

DVC rewrites two of its own files in place: ``.dvc/tmp/rwlock`` (who works on what) and ``dvc.lock``.
Killed in between, it leaves them torn, and every later ``dvc repro`` refuses. Neither holds anything
that cannot be had again: a torn table of workers names no living worker, and DVC's cache of runs
gives every finished stage back to an empty ``dvc.lock`` without running it.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

RWLOCK = Path(".dvc/tmp/rwlock")
LOCK = Path("dvc.lock")
_WRITING_SECONDS = 0.5  # a living DVC has written its file by then


def clear(project: Path) -> list[str]:
    """Put torn files of DVC's aside; returns a sentence for each.

    Call it where no other run is at work in the folder.
    """
    return [told for check in (_clear_rwlock, _clear_lock) if (told := check(project)) is not None]


def _clear_rwlock(project: Path) -> str | None:
    path = project / RWLOCK
    if not _torn_json(path):
        return None
    time.sleep(_WRITING_SECONDS)
    if not _torn_json(path):
        return None
    path.unlink(missing_ok=True)
    return f"{RWLOCK}: half-written by a DVC that was killed; removed"


def _torn_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _clear_lock(project: Path) -> str | None:
    path = project / LOCK
    if not path.exists() or _is_whole(path.read_bytes()):
        return None
    aside = path.with_name("dvc.lock.torn")
    os.replace(path, aside)
    return f"{LOCK}: half-written by a killed DVC; moved to {aside.name}, DVC rebuilds it from its cache"


def _is_whole(content: bytes) -> bool:
    if b"<<<<<<< " in content:
        return True  # a merge that a person has to finish: DVC says so
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe", pure=True).load(content.decode()))
    except (YAMLError, ValueError, Invalid):
        return False
    return True


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m flows.leftovers",
        description="Move aside files that a killed DVC left half-written here; make run calls it first. Call it only "
        "if nothing else runs.",
        epilog="example: python -m flows.leftovers",
    ).parse_args()
    for line in clear(Path()):
        print(line, file=sys.stderr)
