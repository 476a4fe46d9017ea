"""What git knows: files at a commit, the commits that touched a file, what changed since one."""

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.lineage.lock import LOCK_FILE, Entry, LockError, parse_lock


class RevisionError(Exception):
    """A name is no commit, branch, tag or experiment."""


def resolve(project: Path, name: str) -> str:
    """Return the full commit hash that a commit, branch, tag or experiment's name stands for.

    Raises:
        RevisionError: there is no such thing; lists the experiments.
    """
    found = _git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is not None:
        return found.decode().strip()
    experiments = _experiments(project)
    if name in experiments:
        return experiments[name]
    known = f"; experiments: {', '.join(sorted(experiments))}" if experiments else ""
    raise RevisionError(f"no commit, branch, tag or experiment {name!r}{known}")


def head(project: Path) -> str | None:
    """The commit that is checked out; ``None``: no repository, or nothing committed."""
    found = _git(project, "rev-parse", "--verify", "--quiet", "HEAD")
    return found.decode().strip() if found else None


def file_at(project: Path, commit: str, path: str) -> str | None:
    """A text file of the project as it was at a commit; ``None``: it was not there."""
    found = _git(project, "show", f"{commit}:./{path}")
    return None if found is None else found.decode(errors="replace")


def entries_at(project: Path, commit: str) -> dict[str, Entry]:
    """dvc.lock as it was at a commit; none, or a damaged one: nothing."""
    text = file_at(project, commit, LOCK_FILE)
    try:
        return parse_lock(text, LOCK_FILE) if text else {}
    except LockError:
        return {}


def commits_of_lock(project: Path) -> Iterator[str]:
    """Commits of every branch and experiment that changed dvc.lock, newest first."""
    found = _git(project, "log", "--all", "--format=%H", "--", LOCK_FILE)
    yield from (found or b"").decode().split()


def changed_files(project: Path, commit: str, paths: Sequence[str]) -> list[str] | None:
    """Lines as ``M stages/fit/gains.py`` for what differs below the paths since a commit; ``None``: git cannot tell."""
    found = _git(project, "diff", "--name-status", "--no-renames", "--relative", "-z", commit, "--", *paths)
    if found is None:
        return None
    fields = found.decode(errors="replace").split("\0")[:-1]
    lines = [f"{status} {path}" for status, path in zip(fields[::2], fields[1::2], strict=True)]
    others = _git(project, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths) or b""
    lines += [f"A {path}" for path in others.decode(errors="replace").split("\0")[:-1]]
    return sorted(lines, key=lambda line: line[2:])


def _experiments(project: Path) -> dict[str, str]:
    # DVC keeps an experiment as refs/exps/<2>/<38 characters of the commit it began from>/<name>.
    found = _git(project, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    lines = [line.rpartition(" ") for line in (found or b"").decode().splitlines()]
    return {ref.split("/", 4)[4]: commit for ref, _, commit in lines if ref.count("/") >= 4}


def _git(project: Path, *arguments: str) -> bytes | None:
    command = ["git", "--no-optional-locks", "-C", str(project), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
