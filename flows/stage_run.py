"""One stage through DVC, whose own lines say what happened."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flows.graph import StageNode
from flows.lineage.project import open_project, read_lock
from flows.workspace import Workspace
from salf.errors import BAD_INPUT, UserError
from salf.memory import advice

# Another DVC holds the lock while it hashes outputs: DVC alone gives up after 3 s.
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
PUT_BACK_SECONDS = 60.0
_STAGE_STATUS = re.compile(r"exited with (-?\d+)\s*$")
_KILLED = {int(number): number.name for number in (signal.SIGKILL, signal.SIGBUS, signal.SIGABRT)}
_BUSY = "is busy, it is being blocked by"
_CACHE_FULL = "ERROR: failed to transfer"  # DVC says so, locks the stage all the same, and ends well


class Outcome(StrEnum):
    """DVC's action for a stage."""

    RAN = "ran"
    RESTORED = "restored"  # run before with the same inputs: outputs taken from DVC's cache
    CACHED = "cached"  # nothing changed, its outputs were in place


@dataclass(frozen=True)
class StageRun:
    """What DVC did for a stage that succeeded, and the wall-clock time with DVC's own start."""

    outcome: Outcome
    seconds: float


class StageFailedError(Exception):
    """A stage failed; the text is the line that the user needs, ``passing`` whether trying again may help."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


def run_stage(node: StageNode, held: Workspace, on_line: Callable[[str], None], force: bool = False) -> StageRun:
    """Bring one stage up to date; its inputs must be up to date already.

    A stage that is stopped or fails leaves its outputs unchanged, also those that ``dvc.yaml`` keeps out of the cache.
    ``on_line`` is called with every line that is not empty; ``force`` runs the stage even when nothing changed.
    """
    lines: list[str] = []
    command = [*DVC, "repro", "--single-item", node.name, *(["--force"] if force else [])]
    started = time.monotonic()
    try:
        status = held.run(command, keeping(lines, on_line), node.timeout)
        if status != 0:
            raise failure(node.name, lines, status)
    except subprocess.TimeoutExpired:
        _put_back(node, held, lines)
        raise StageFailedError(f"{node.name}: stopped after {node.timeout:g} s (meta.timeout)", passing=True) from None
    except BaseException:  # failed, stopped, or its lines have no reader any more
        _put_back(node, held, lines)
        raise
    if any(line.startswith(_CACHE_FULL) for line in lines):
        raise failure(node.name, lines, status)
    done = outcome(node.name, lines)
    if done is None:
        raise StageFailedError(f"{node.name}: DVC succeeded but did not report what it did", passing=False)
    return StageRun(done, time.monotonic() - started)


def keeping(lines: list[str], on_line: Callable[[str], None]) -> Callable[[str], None]:
    """Return a reader that keeps every line and passes on those that are not empty."""

    def keep(line: str) -> None:
        lines.append(line)
        if line:
            on_line(line)

    return keep


def last_fault(lines: Sequence[str], status: int, *prefixes: str) -> str:
    """The last line with the first prefix that occurs at all, without it; where none does, DVC's exit status."""
    faults = (found[-1] for prefix in prefixes or ("ERROR: ",) if (found := _after(prefix, lines)))
    return next(faults, f"DVC exited with {status}")


def _after(prefix: str, lines: Sequence[str]) -> list[str]:
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


def _put_back(node: StageNode, held: Workspace, lines: Sequence[str]) -> None:
    """Restore the outputs from DVC's cache, and remove what was left half-done."""
    busy = any(_BUSY in line for line in lines)  # while another DVC works on the outputs they are that one's
    announced = outcome(node.name, lines) in (Outcome.RAN, Outcome.RESTORED)
    # Outputs are removed before anything is said, and a missing input is found only then.
    if busy or not (announced or not all((held.project / path).exists() for path in node.outputs)):
        return
    command = [*DVC, "checkout", "--quiet", "--force", node.name]
    with contextlib.suppress(subprocess.TimeoutExpired, UserError, OSError):  # they would hide why the stage failed
        # The status only says that a stage which never ran before has nothing to restore.
        held.run(command, lambda _line: None, PUT_BACK_SECONDS)
        if node.uncached:
            _restore_uncached(node, held.project)


def _restore_uncached(node: StageNode, folder: Path) -> None:
    """Restore what ``dvc checkout`` leaves out: DVC's cache of runs has a copy, named by the hash in dvc.lock."""
    entry = read_lock(folder).get(node.name)
    with open_project(folder) as project:
        for path in node.uncached:
            place, name = folder / path, entry.outputs.get(path, "") if entry else ""
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
            for file, md5 in (project.manifest(name) or {"": name}).items():
                if project.cached(md5).is_file():
                    (place / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(project.cached(md5), place / file)


def outcome(name: str, lines: Sequence[str]) -> Outcome | None:
    """Read from DVC's output what it did, or announced to do, about a stage; ``None``: it stopped before."""
    known = {
        f"Running stage '{name}':": Outcome.RAN,
        f"Stage '{name}' is cached - skipping run, checking out outputs": Outcome.RESTORED,
        f"Stage '{name}' didn't change, skipping": Outcome.CACHED,
    }
    return next((known[line] for line in lines if line in known), None)


def failure(name: str, lines: Sequence[str], status: int) -> StageFailedError:
    """Return the one clear fault in the output of a failed ``dvc repro``.

    A stage that refuses its input (exit status 2) says why in ``error:`` lines, and trying again cannot help; nor
    can it where DVC refused before the stage began, unless another DVC was busy.
    """
    from_stage, from_dvc = _after("error: ", lines), _after("ERROR: ", lines)
    ended = next((found for line in from_dvc if (found := _STAGE_STATUS.search(line))), None)
    if ended is None:
        return StageFailedError(f"{name}: {last_fault(lines, status)}", passing=any(_BUSY in line for line in lines))
    if int(ended[1]) == BAD_INPUT:
        return StageFailedError(f"{name}: {'; '.join(from_stage) or 'refused its input'}", passing=False)
    died = _KILLED.get(-int(ended[1]), _KILLED.get(int(ended[1]) - 128))  # by itself, or as a shell has it
    if died:
        reason = f"ended by {died}, as a rule for lack of memory: {advice(name.partition('@')[0])}"
    else:
        reason = from_stage[-1] if from_stage else f"exited with {ended[1]}; its log has the reason"
    return StageFailedError(f"{name}: {reason}", passing=True)
