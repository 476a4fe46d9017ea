"""The stage as a program: what it writes, its bytes, faults, imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from salf.errors import UserError
from salf.selectors import SIGNALS
from tests.signals.conftest import examples

PROJECT = Path(__file__).parents[2]
KINDS = list(SIGNALS)
SPACES, LAYERS = {0, 1, 2, 3, 4}, {1, 2, 3, 4}


def test_every_kind_writes_its_signals_by_space_or_layer(workspace):
    table = workspace.run(kinds=KINDS, sample=20)
    assert {name: set(values) for name, values in table.items()} == {
        "block-influence": LAYERS,
        "variability": SPACES,
        "probe": SPACES,
        "probe-pooled": SPACES,
        "probe-error": SPACES,
        "grad-norm": LAYERS,
        "spectrum": LAYERS,
    }
    assert table["variability"][0] == ""  # prompts end alike: at space 0 their answer positions are all the same
    assert all(0 < float(value) < 2 for value in table["block-influence"].values())
    assert all(0 <= float(value) <= 1 for value in table["probe"].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_alone_gives_what_it_gives_among_others(workspace, kind):
    among = workspace.run(kinds=KINDS)
    alone = workspace.run(kinds=[kind])
    assert alone == {name: among[name] for name in alone}
    assert all(name.startswith(kind) for name in alone)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_another_sample(workspace):
    workspace.run(kinds=KINDS, sample=10)
    first = workspace.out.read_bytes()
    workspace.run(kinds=KINDS, sample=10)
    assert workspace.out.read_bytes() == first
    workspace.run(kinds=KINDS, sample=10, seed=2)
    assert workspace.out.read_bytes() != first


def test_no_kinds_write_the_header_alone_and_open_nothing(workspace):
    workspace.base = workspace.root / "no such model"
    assert workspace.run(kinds=[]) == {}


def test_by_default_neither_signals_nor_pilots_are_made_and_no_torch_is_imported(workspace):
    workspace.run(kinds=[])
    heavy = "('torch', 'transformers', 'sklearn')"
    argv = workspace.argv()
    code = f"import sys, stages.signals.__main__ as s; s.main({argv}); sys.exit(any(m in sys.modules for m in {heavy}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=workspace.root, env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no signals: signals.kinds is empty\nno pilots: pilot.enabled is false\n" in done.stdout
    assert json.loads(workspace.out.with_name("pilot.json").read_text()) == {"schema": 1, "enabled": False}


def test_free_answers_are_told_apart_by_their_first_token(workspace):
    workspace.write(examples(24, free=True))  # two first tokens, as the two labels
    free = workspace.run(kinds=["probe", "variability"])
    workspace.write(examples(24))
    assert free == workspace.run(kinds=["probe", "variability"])


@pytest.mark.parametrize("kind", ["probe", "variability"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row for row in examples(24) if row.label == "a"], "labels of the sample are all the same"),
        (
            [type(row)(**{**vars(row), "label": None, "answer_ids": (30 + i,)}) for i, row in enumerate(examples(24))],
            "24 of the sample's 24 answers' first tokens occur once; raise signals.sample, or leave",
        ),
    ],
    ids=["one class", "answers that all differ"],
)
def test_a_sample_without_classes_is_refused_and_destroys_nothing(workspace, kind, rows, message):
    workspace.run(kinds=["block-influence"])
    before = workspace.out.read_bytes()
    workspace.write(rows)
    with pytest.raises(UserError, match=f"signals.kinds: {kind} .*{message}") as fault:
        workspace.run(kinds=[kind])
    assert "\n" not in str(fault.value)
    assert workspace.out.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: (w.prepared / "train.parquet").unlink(), r"train\.parquet: .*dvc repro prepare"),
        (lambda w: (w.prepared / "meta.json").unlink(), r"meta\.json: no such file"),
        (lambda w: setattr(w, "base", w.root), "cannot be opened as a causal language model"),
    ],
)
def test_missing_inputs_are_one_line(workspace, spoil, message):
    spoil(workspace)
    with pytest.raises(UserError, match=message):
        workspace.run(kinds=["spectrum"])
