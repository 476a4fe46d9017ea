"""One stage through DVC: what happened is told by DVC's own lines."""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from flows.aside import keep_aside, let_go, put_back
from flows.graph import StageNode
from flows.processes import TimedOutError, run_streaming

# A stage that runs beside this one holds DVC's lock while its outputs are hashed: DVC alone gives up after 3 s.
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
PUT_BACK_SECONDS = 60.0
BAD_INPUT = 2  # a stage's exit status for a fault that only the user can mend
_STAGE_STATUS = re.compile(r"exited with (-?\d+)\s*$")
_BUSY = "is busy, it is being blocked by"
_STAGE_FAULT = "error: "
_DVC_FAULT = "ERROR: "
_CACHE_FULL = "ERROR: failed to transfer"  # DVC says so, locks the stage all the same, and ends well


class Outcome(StrEnum):
    """What DVC did about a stage."""

    RAN = "ran"
    CACHED = "cached"  # nothing changed, its outputs were in place
    RESTORED = "restored"  # run before with the same inputs: outputs taken from DVC's cache


@dataclass(frozen=True)
class StageRun:
    """A stage that ended well.

    Attributes:
        name: the stage's address.
        outcome: what DVC did.
        seconds: wall-clock time, DVC's own start included.
    """

    name: str
    outcome: Outcome
    seconds: float


class StageFailedError(Exception):
    """A stage failed; the text is the line that the user needs, ``passing`` whether trying again may help."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


def run_stage(
    node: StageNode,
    project: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    force: bool = False,
    keep_open: Sequence[int] = (),
    stop: threading.Event | None = None,
) -> StageRun:
    """Bring one stage up to date; what it reads must be up to date already.

    Stages whose outputs do not overlap may be brought up to date at the same time: DVC holds its
    lock on the project only before and after a stage's command.

    A stage that is stopped or fails leaves its outputs as they were before, those that DVC does not
    cache too.

    Args:
        node: the stage.
        project: the folder that holds ``dvc.yaml``.
        environment: the whole environment.
        on_line: called with every line that is not empty.
        force: run it even when nothing changed.
        keep_open: file descriptors that DVC inherits.
        stop: once set, the stage is stopped.

    Raises:
        StageFailedError: the stage or DVC failed, or the stage's time-out passed.
        StoppedError: ``stop`` was set.
    """
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        if line:
            on_line(line)

    command = [*DVC, "repro", "--single-item", node.name]
    if force:
        command.append("--force")
    try:
        keep_aside(node, project)
    except OSError as error:
        raise StageFailedError(f"{node.name}: its outputs cannot be backed up: {error}", passing=True) from None
    started = time.monotonic()
    try:
        status = run_streaming(command, project, environment, keep, node.timeout, keep_open, stop)
    except TimedOutError:
        _put_back(node, project, environment, keep_open, lines)
        raise StageFailedError(f"{node.name}: stopped after {node.timeout:g} s (meta.timeout)", passing=True) from None
    except BaseException:  # stopped, or nobody takes its lines any more
        _put_back(node, project, environment, keep_open, lines)
        raise
    if status != 0:
        _put_back(node, project, environment, keep_open, lines)
        raise failure(node.name, lines, status)
    let_go(node, project)
    if any(line.startswith(_CACHE_FULL) for line in lines):
        raise failure(node.name, lines, status)
    return StageRun(node.name, outcome(node.name, lines), time.monotonic() - started)


def _put_back(
    node: StageNode, project: Path, environment: Mapping[str, str], keep_open: Sequence[int], lines: Sequence[str]
) -> None:
    """Bring back the outputs that DVC's lock file knows and those kept aside; remove what was left half-done."""
    if not _has_begun(node, project, lines):
        let_go(node, project)
        return
    put_back(node, project)
    command = [*DVC, "checkout", "--quiet", "--force", node.name]
    # Its status says no more than that a stage which never ran before has nothing to bring back.
    with contextlib.suppress(TimedOutError):
        run_streaming(command, project, environment, lambda _line: None, PUT_BACK_SECONDS, keep_open)


def _has_begun(node: StageNode, project: Path, lines: Sequence[str]) -> bool:
    """Whether DVC may have touched the outputs; while another DVC is at work on them they are that one's."""
    if any(_BUSY in line for line in lines):
        return False
    announced = _announced(node.name, lines) in (Outcome.RAN, Outcome.RESTORED)
    # Outputs are removed before anything is said, and a missing input is found only then.
    return announced or not all((project / path).exists() for path in node.outputs)


def outcome(name: str, lines: Sequence[str]) -> Outcome:
    """Tell from DVC's output what it did about the stage ``name``.

    Raises:
        StageFailedError: none of DVC's lines about the stage is there.
    """
    told = _announced(name, lines)
    if told is None:
        raise StageFailedError(f"{name}: DVC succeeded but did not report what it did", passing=False)
    return told


def _announced(name: str, lines: Sequence[str]) -> Outcome | None:
    """What DVC said that it would do about the stage, if it came to say so."""
    told = {
        f"Running stage '{name}':": Outcome.RAN,
        f"Stage '{name}' is cached - skipping run, checking out outputs": Outcome.RESTORED,
        f"Stage '{name}' didn't change, skipping": Outcome.CACHED,
    }
    return next((told[line] for line in lines if line in told), None)


def failure(name: str, lines: Sequence[str], status: int) -> StageFailedError:
    """Make the one clear fault out of the output of a failed ``dvc repro``.

    A stage that blames its input (exit status 2) says why in ``error:`` lines, and trying again
    cannot help; nor can it where DVC refused before the stage began, unless another DVC was busy.
    """
    from_stage = [line.removeprefix(_STAGE_FAULT) for line in lines if line.startswith(_STAGE_FAULT)]
    from_dvc = [line.removeprefix(_DVC_FAULT) for line in lines if line.startswith(_DVC_FAULT)]
    stage_status = _stage_status(from_dvc)
    if stage_status == BAD_INPUT:
        return StageFailedError(f"{name}: {'; '.join(from_stage) or 'refused its input'}", passing=False)
    if stage_status is not None:
        reason = from_stage[-1] if from_stage else f"exited with {stage_status}; its log has the reason"
        return StageFailedError(f"{name}: {reason}", passing=True)
    reason = from_dvc[-1] if from_dvc else f"DVC exited with {status}"
    return StageFailedError(f"{name}: {reason}", passing=any(_BUSY in line for line in lines))


def _stage_status(from_dvc: Sequence[str]) -> int | None:
    for line in from_dvc:
        if found := _STAGE_STATUS.search(line):
            return int(found[1])
    return None
