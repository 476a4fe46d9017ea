"""Imports point one way: the contracts of pyproject.toml hold."""

from importlinter.cli import lint_imports

from tests.stage_sources import ROOT


def test_the_contracts_hold(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status = lint_imports(no_cache=True)
    told = capsys.readouterr().out
    assert "5 kept, 0 broken" in told
    assert status == 0
