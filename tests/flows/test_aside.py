"""Copies of uncached outputs: put back whole, removed when nobody needs them."""

import pytest

from flows.aside import FOLDER, keep_aside, let_go, put_back, put_back_left
from flows.graph import StageNode

NODE = StageNode("judge@a-1", uncached=("scores.json", "drawn/pages"))


@pytest.fixture
def project(tmp_path):
    (tmp_path / "drawn/pages").mkdir(parents=True)
    (tmp_path / "drawn/pages/one.html").write_text("old")
    (tmp_path / "scores.json").write_text("old")
    return tmp_path


def contents(project) -> dict[str, str]:
    files = [file for file in project.rglob("*") if file.is_file()]
    return {file.relative_to(project).as_posix(): file.read_text() for file in files}


def test_files_and_folders_come_back_in_place_of_what_is_half_done(project):
    before = contents(project)
    keep_aside(NODE, project)
    (project / "scores.json").unlink()
    (project / "drawn/pages/two.html").write_text("half-done")
    put_back(NODE, project)
    assert contents(project) == before


def test_what_was_not_there_is_gone_again(project):
    (project / "scores.json").unlink()
    before = contents(project)
    keep_aside(NODE, project)
    (project / "scores.json").write_text("half-done")
    put_back(NODE, project)
    assert contents(project) == before


def test_without_copies_nothing_is_put_back_and_nothing_removed(project):
    before = contents(project)
    keep_aside(NODE, project)
    let_go(NODE, project)
    put_back(NODE, project)
    assert contents(project) == before


def test_what_a_killed_run_lost_is_put_back_and_what_was_made_since_stays(project):
    keep_aside(NODE, project)
    (project / "scores.json").unlink()
    (project / "drawn/pages/one.html").unlink()
    (project / "drawn/pages/two.html").write_text("new")
    assert put_back_left(project) == ["scores.json"]
    assert contents(project) == {"scores.json": "old", "drawn/pages/two.html": "new"}
    assert put_back_left(project) == []


def test_copies_that_were_not_finished_are_not_put_back(project):
    keep_aside(NODE, project)
    copies = next((project / FOLDER).iterdir())
    copies.rename(copies.with_name(f".{copies.name}"))
    (project / "scores.json").unlink()
    assert put_back_left(project) == []
    assert contents(project) == {"drawn/pages/one.html": "old"}
