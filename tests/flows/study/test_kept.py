"""What was in the cache before an experiment, whatever became of its first run."""

from flows.study.kept import first_seen, forget, objects


def test_what_a_killed_run_left_was_not_there_before_it(tmp_path):
    cache = tmp_path / "cache"
    for name in ("aa/1", "bb/2.dir"):
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_text("x")
    before = first_seen(tmp_path, cache, "study-1")
    assert before == objects(cache) == {"aa1", "bb2.dir"}
    (cache / "aa/3").write_text("a model that was trained before the run was killed")
    assert first_seen(tmp_path, cache, "study-1") == before
    assert first_seen(tmp_path, cache, "study-2") == {"aa1", "aa3", "bb2.dir"}
    forget(tmp_path, "study-1")
    assert first_seen(tmp_path, cache, "study-1") == {"aa1", "aa3", "bb2.dir"}
    forget(tmp_path, "study-9")  # never begun
