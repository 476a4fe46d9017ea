import json

import pytest

from flows import audit, pipeline

# Slow for its server alone, which takes half a minute to start in every process that tests with one.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_an_audit_passes_what_was_made_and_fails_loudly_on_what_was_edited(git_toy, monkeypatch, capsys):
    monkeypatch.chdir(git_toy.root)
    monkeypatch.delenv("SALF_LEDGER", raising=False)
    assert pipeline.main(["--targets", "first"]) == 0
    git_toy.commit()
    assert audit.main([]) == 0
    head = json.loads((git_toy.root / "reports/lineage/records.jsonl").read_text().splitlines()[-1])
    assert head["kind"] == "locked"
    assert "everything matches its record" in capsys.readouterr().out

    result = git_toy.root / "first.txt"
    result.unlink()  # or the cache, of which it may be a hard link, would be edited with it
    result.write_text("forged")
    capsys.readouterr()
    assert audit.main([]) == 1
    assert "first.txt" in capsys.readouterr().err.splitlines()[-1]


def test_a_project_that_cannot_be_read_fails_the_audit(toy, monkeypatch, capsys):
    (toy.root / "dvc.yaml").write_text("stages: [no")
    (toy.root / "dvc.lock").write_text("schema: [no")
    monkeypatch.chdir(toy.root)
    assert audit.main([]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
