"""The stage as a program: bytes, faults, imports, what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from salf.errors import UserError
from salf.files import sha256_file
from salf.plan import SCHEMA_FILE, FreezePlan
from salf.selectors import SELECTORS
from salf.summary import summary
from stages.plan.__main__ import main

PROJECT = Path(__file__).parents[2]


def test_the_artifact_obeys_its_published_schema_and_names_its_evidence(workspace):
    plan = workspace.plan()
    artifact = json.loads((workspace.out / "freeze_plan.json").read_text())
    jsonschema.validate(artifact, json.loads(SCHEMA_FILE.read_text()))
    assert plan.evidence.law_sha256 == sha256_file(workspace.law)
    assert plan.evidence.gains_sha256 == sha256_file(workspace.gains)
    assert plan.evidence.signals_sha256 == sha256_file(workspace.signals)
    assert plan.evidence.trace_sha256 == "cd" * 32
    assert [p.name for p in workspace.out.iterdir()] == ["freeze_plan.json"]


def test_the_same_inputs_give_the_same_bytes(workspace):
    workspace.plan()
    first = (workspace.out / "freeze_plan.json").read_bytes()
    workspace.plan()
    assert (workspace.out / "freeze_plan.json").read_bytes() == first


def test_no_torch_is_imported():
    code = "import sys, stages.plan.__main__; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.law.unlink(), r"law\.json: no such file.*dvc repro fit"),
        (lambda w: w.law.write_text("{"), "damaged JSON"),
        (lambda w: w.law.write_text("{}"), "law.json: layers: Field required"),
        (lambda w: w.rewrite_law(quantities=("loss",)), "no deviation"),
        (lambda w: w.gains.write_text("layer,value\n"), "no column embedding_step"),
        (
            lambda w: w.gains.write_text(w.gains.read_text().replace("0.12", "x")),
            "value = 'x': Input should be a valid number",
        ),
        (lambda w: w.gains.write_text(w.gains.read_text().replace("observed,5", "observed,9")), "layer 9"),
        (
            lambda w: w.gains.write_text(w.gains.read_text().replace("ratio", "best")),
            "gain = 'best': Input should be",
        ),
        (lambda w: w.signals.unlink(), r"signals\.csv: no such file.*dvc repro signals"),
        (lambda w: w.signals.write_text("signal,value\n"), "no column layer"),
        (
            lambda w: w.signals.write_text("signal,layer,value\nprobe,1,x\n"),
            "csv: line 2: value = 'x': Input",
        ),
        (lambda w: w.rewrite_signals(probe=[0.5] * 5), "probe is not about 6 layers; run again: dvc repro signals"),
        (lambda w: (w.prepared / "meta.json").unlink(), r"meta\.json: .*dvc repro prepare"),
        (lambda w: (w.prepared / "meta.json").write_text('{"splits": {}, "shared_prefix_tokens": 0}'), "no training"),
        (lambda w: (w.base / "config.json").unlink(), "dvc repro base"),
    ],
)
def test_bad_input_is_one_line_and_destroys_nothing(workspace, spoil, message):
    workspace.plan()
    before = (workspace.out / "freeze_plan.json").read_bytes()
    spoil(workspace)
    with pytest.raises(UserError, match=message) as fault:
        workspace.plan()
    assert "\n" not in str(fault.value)
    assert (workspace.out / "freeze_plan.json").read_bytes() == before


def test_a_trace_of_another_model_is_refused(workspace):
    config = json.loads((workspace.base / "config.json").read_text())
    (workspace.base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 8}))
    with pytest.raises(UserError, match="traced 6 layers, the base model has 8"):
        workspace.plan()


def test_a_trace_of_other_weights_of_the_same_shape_is_refused(workspace):
    law = json.loads(workspace.law.read_text())
    workspace.law.write_text(json.dumps({**law, "trace": {"weights_sha256": "ab" * 32}}))
    workspace.plan()
    workspace.law.write_text(json.dumps({**law, "trace": {"weights_sha256": "cd" * 32}}))
    with pytest.raises(UserError, match=r"made of other weights than the base model's .*; run: dvc repro trace fit"):
        workspace.plan()


def test_the_help_lists_every_selector_with_its_boundary(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name, entry in SELECTORS.items():  # a plan cannot be asked for first-n: it is compared as a method
        assert (f"  {name:25}{entry.boundary}\n" in text) == (name != "first-n")


def test_without_signals_a_plan_says_so(workspace):
    argv = workspace.argv()
    del argv[argv.index("--signals") : argv.index("--signals") + 2]
    workspace.set()
    main(argv)
    plan = FreezePlan.load(workspace.out)
    assert plan.evidence.signals_sha256 is None
    assert "add probe to signals.kinds" in plan.absent["probe"]


def test_a_model_of_one_layer_has_nothing_to_choose(workspace):
    config = json.loads((workspace.base / "config.json").read_text())
    (workspace.base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match="no boundary to choose"):
        workspace.plan()


def test_the_summary_names_choice_reason_certainty_and_cost(workspace):
    plan = workspace.plan()
    text = "\n".join(summary(plan))
    assert "embeddings and layers 1-5 frozen, layers 6-6 train" in text
    assert plan.reason in text
    assert "unsure: layer 5 wins 43% of resamples" in text
    assert "5 <- chosen" in text
    assert f"Cost: {plan.frontier[5].flops_share:.0%} of full fine-tuning's FLOPs" in text
