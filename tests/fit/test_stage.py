import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from salf.errors import UserError
from salf.evidence import LayerGain, Traced
from stages.common.command import exit_code
from stages.fit.__main__ import main
from stages.fit.traces import read_traces
from tests.fit.shapes import late_deviation, late_loss, noisy_examples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder whose fit makes few resamples."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("bootstrap: 200 ", "bootstrap: 40 ")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(project, name="reports"):
    law, gains = project / name / "law.json", project / name / "gains.csv"
    main(["--traces", str(project / "traces"), "--law", str(law), "--gains", str(gains)])
    return law, gains


def ids(count):
    return [f"e{i:04d}" for i in range(count)]


def test_the_shapes_of_a_real_model_from_traces_to_artifacts(project, write_part, capsys):
    deviation = noisy_examples(late_deviation(), 90, 0.05, seed=1)
    loss = noisy_examples(late_loss(), 90, 0.2, seed=2)
    traced = [list(row) if i < 60 else None for i, row in enumerate(loss)]
    write_part(project / "traces" / "part-00000.parquet", ids(90)[:50], deviation[:50], traced[:50])
    write_part(project / "traces" / "part-00001.parquet", ids(90)[50:], deviation[50:], traced[50:])
    law, gains = run(project)
    content = json.loads(law.read_text())
    assert (content["layers"], content["examples"], content["positions"]) == (30, 90, 90)
    assert content["trace"].keys() == Traced.model_fields.keys()  # what a trace does not say is null, not absent
    found = content["quantities"]
    assert found["loss"]["examples"] == 60
    np.testing.assert_allclose(found["deviation"]["mean"], deviation.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["loss"]["p90"], np.percentile(loss[:60], 90, axis=0), rtol=1e-6)
    assert found["loss"]["embedding_step"] == pytest.approx(90, rel=0.1)
    assert found["deviation"]["best"] == "power_tail"
    for law_ in (each for q in found.values() for each in q["laws"]):
        start = law_["first_space"] - 1
        assert law_["curve"][:start] == [None] * start
        assert None not in law_["curve"][start:]
        assert all(low <= high for low, high in law_["intervals"].values())
        assert set(law_["intervals"]) == set(law_["parameters"])
    tail = next(each for each in found["deviation"]["laws"] if each["name"] == "power_tail")
    low, high = tail["intervals"]["onset"]
    assert low <= tail["parameters"]["onset"] <= high

    table = pd.read_csv(gains)
    assert list(table.columns) == list(LayerGain.model_fields)
    assert len(table) == 2 * 5 * 30
    assert (table.loc[table["embedding_step"], "layer"] == 1).all()
    assert (table.loc[table["embedding_step"], "win_share"] == 0).all()
    np.testing.assert_allclose(table.groupby(["quantity", "gain"])["win_share"].sum(), 1.0)
    observed = table[(table["quantity"] == "loss") & (table["gain"] == "observed")]
    assert observed["value"].idxmax() == observed.index[0]  # the embedding step is the largest, and cannot win
    assert observed.loc[observed["win_share"].idxmax(), "layer"] >= 20
    said = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(each["verdict"].split()) in said for each in found.values())


def test_same_traces_same_bytes_and_another_confidence_moves_the_intervals_alone(project, write_part):
    curves = noisy_examples(0.5 + np.exp(-np.arange(7.0) / 3), 20, 0.05, seed=0)
    write_part(project / "traces" / "part-00000.parquet", ids(20), curves)
    first, again = run(project), run(project, "again")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("confidence: 0.9  ", "confidence: 0.8  "))
    narrower = json.loads(run(project, "narrower")[0].read_text())["quantities"]["deviation"]
    before = json.loads(first[0].read_text())["quantities"]["deviation"]
    assert narrower["mean"] == before["mean"]
    assert narrower["laws"][0]["parameters"] == before["laws"][0]["parameters"]
    assert all(n > b for n, b in zip(narrower["low"], before["low"], strict=True))


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_few_layers_leave_laws_out_and_say_so(project, write_part, layers):
    curves = noisy_examples(np.linspace(1.0, 0.6, layers + 1), 12, 0.01, seed=0)
    write_part(project / "traces" / "part-00000.parquet", ids(12), curves)
    law, gains = run(project)
    found = json.loads(law.read_text())["quantities"]
    assert list(found) == ["deviation"]
    assert found["deviation"]["fits"] is False
    assert any("left out" in note for note in found["deviation"]["notes"])
    assert len(pd.read_csv(gains)) == 5 * layers  # every gain of every layer


def test_one_example_and_means_of_zero_are_noted(project, write_part):
    write_part(project / "traces" / "part-00000.parquet", ["a"], [[1.0, 0.9, 0.5, 0.2, 0.0, 0.0]])
    law, _ = run(project)
    notes = json.loads(law.read_text())["quantities"]["deviation"]["notes"]
    assert any("one example" in n for n in notes)
    assert any("zero" in n for n in notes)


def test_positions_of_an_example_are_averaged_first(tmp_path, write_part):
    """Three positions of one example weigh as much as the one position of another, across parts."""
    write_part(tmp_path / "part-00000.parquet", ["b", "b", "a"], [[1.0, 0.0], [2.0, 0.0], [0.5, 0.5]])
    write_part(tmp_path / "part-00001.parquet", ["b"], [[0.0, 1.5]], [[7.0, 5.0]])
    traces = read_traces(tmp_path)
    np.testing.assert_allclose(traces.curves["deviation"], [[0.5, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(traces.curves["loss"], [[7.0, 5.0]])
    assert (traces.examples, traces.positions) == (2, 4)


CURVE = [[1.0, 0.5]]


def _cut_short(folder, write_part):
    write_part(folder / "part-00000.parquet", ["a"], CURVE)
    whole = (folder / "part-00000.parquet").read_bytes()
    (folder / "part-00000.parquet").write_bytes(whole[: len(whole) // 2])


def _other_model(folder, write_part):
    write_part(folder / "part-00000.parquet", ["a"], CURVE)
    write_part(folder / "part-00001.parquet", ["b"], CURVE, model="another")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder, _: folder.rmdir(), "dvc repro trace"),
        (lambda _, __: None, "no part-"),
        (_cut_short, "damaged"),
        (_other_model, "another model"),
        (
            lambda folder, part: part(folder / "part-0.parquet", ["a", "b"], [*CURVE, [1.0, float("nan")]]),
            "space 1 of example b",
        ),
        (lambda folder, _: pd.DataFrame({"example_id": ["a"]}).to_parquet(folder / "part-0.parquet"), "not a trace"),
        (lambda folder, part: part(folder / "part-0.parquet", ["a"], CURVE, layers=7), "8 numbers"),
    ],
)
def test_bad_traces_are_one_clear_line_and_write_nothing(project, write_part, capsys, spoil, says):
    folder = project / "traces"
    folder.mkdir()
    spoil(folder, write_part)
    code = exit_code(main, ["--traces", "traces", "--law", "reports/law.json", "--gains", "reports/gains.csv"])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]
    assert not (project / "reports").exists()


def test_no_positions_at_all_is_a_users_fault(tmp_path, write_part):
    write_part(tmp_path / "part-00000.parquet", ["a"], [[1.0, 0.5]])
    pq.write_table(pq.read_table(tmp_path / "part-00000.parquet").slice(0, 0), tmp_path / "part-00000.parquet")
    with pytest.raises(UserError, match="no traced position"):
        read_traces(tmp_path)
