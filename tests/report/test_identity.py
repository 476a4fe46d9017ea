"""Who made the page: asked of a real git repository."""

import subprocess
from pathlib import Path

from stages.common.run_record import code_state


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def repository(folder: Path) -> Path:
    git(folder, "init", "-q")
    for name in ("stages", "reports", "data"):
        (folder / name).mkdir()
        (folder / name / "file.txt").write_text("first")
    lock = "stages:\n  judge:\n    outs:\n" + "".join(f"    - path: {name}/file.txt\n" for name in ("reports", "data"))
    (folder / "dvc.lock").write_text(lock)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_tree_has_a_commit_and_no_changes(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    facts, changed = code_state(folder)
    assert (facts["commit"], changed) == (git(folder, "rev-parse", "HEAD").strip(), [])


def test_what_a_run_itself_writes_is_no_change_but_code_is(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    for name in ("reports/file.txt", "data/file.txt"):
        (folder / name).write_text("second")
    with (folder / "dvc.lock").open("a") as file:
        file.write("# second\n")
    assert code_state(folder)[1] == []
    (folder / "stages/file.txt").write_text("second")
    (folder / "stages/new.py").write_text("new")
    assert code_state(folder)[1] == ["stages/file.txt", "stages/new.py"]


def test_outside_git_there_is_no_commit(tmp_path: Path) -> None:
    facts, changed = code_state(tmp_path)
    assert (facts["commit"], changed) == (None, [])
