"""A stage that was stopped goes on from its checkpoint, and only with the inputs that the checkpoint is of."""

import json
import shutil
from contextlib import nullcontext

import pytest

from salf.engine.training.processes import Processes
from salf.engine.training.step import Stepper
from salf.records import FineTuneRecord
from tests.test_chain import commands, new_chain

STOP = 5


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def planned(tmp_path_factory, hub_folder):
    rates = {"full": 0.003, "salf": 0.003}
    changes = {"compare__methods": ["full"], "finetune__learning_rate": rates, "finetune__checkpoint_minutes": 0}
    chain = new_chain(tmp_path_factory.mktemp("resumed"), hub_folder, **changes)
    (chain.root / "data").mkdir()
    (chain.root / "reports").mkdir()
    for name, *argv in commands([])[:-1]:
        chain.stage(name, *argv)
    return chain


@pytest.fixture
def stopped(planned, monkeypatch):
    """Runs the fine-tune until a step begins; returns after how many steps it was stopped."""
    shutil.rmtree(planned.root / "data/models", ignore_errors=True)
    take = Stepper.take
    *_, (name, *argv), _ = commands(["full"])

    def run(stop, seed="1"):
        def stopping(self, parts, rate, number):
            if number == stop:
                raise StoppedError
            return take(self, parts, rate, number)

        monkeypatch.setattr(Stepper, "take", stopping)
        words = [seed if before == "--seed" else word for before, word in zip(["", *argv], argv, strict=False)]
        with pytest.raises(StoppedError):
            planned.stage(name, *words)

    run(STOP)
    return run


def edit(file, change):
    before = file.read_text(encoding="utf-8")
    file.write_text(change(before), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != before
    return lambda: file.write_text(before, encoding="utf-8")


def with_entry(text, **entries):
    return json.dumps({**json.loads(text), **entries})


FILES = {
    "a parameter": ("params.yaml", lambda text: text.replace("weight_decay: 0.0", "weight_decay: 0.5")),
    "another precision": ("params.yaml", lambda text: text.replace("dtype: float32", "dtype: bfloat16")),
    "the plan": ("data/plan/freeze_plan.json", lambda text: text + "\n"),
    "the base's configuration": ("data/base/config.json", lambda text: with_entry(text, hidden_act="gelu")),
    "how answers are scored": ("data/prepared/meta.json", lambda text: with_entry(text, end_token_id=1)),
    "other rows": ("data/prepared/meta.json", lambda text: text.replace('"sha256": "', '"sha256": "0')),
}


def test_the_same_inputs_go_on_from_the_step_that_was_reached(stopped, capsys):
    stopped(STOP + 2)
    assert f"full at rate 0.003: resumes at step {STOP} of " in capsys.readouterr().out


@pytest.mark.parametrize("what", [*FILES, "code", "versions", "the seed", "processes"])
def test_other_inputs_begin_anew(planned, stopped, what, monkeypatch, capsys):
    put_back = edit(planned.root / FILES[what][0], FILES[what][1]) if what in FILES else lambda: None
    stage = "stages.finetune.__main__"
    if what == "code":
        monkeypatch.setattr(f"{stage}.code_hashes", lambda: {"stages/x.py": "other"})
    if what == "versions":
        monkeypatch.setattr(f"{stage}.version", lambda name: f"{name} of tomorrow")
    if what == "processes":
        monkeypatch.setattr(f"{stage}.joined", lambda _kind: nullcontext(Processes(0, 2)))
        monkeypatch.setattr(Processes, "add_up", lambda _self, tensor: tensor)
    try:
        stopped(STOP + 2, "2" if what == "the seed" else "1")
    finally:
        put_back()
    assert "resumes" not in capsys.readouterr().out


def test_a_record_says_which_weights_were_kept_and_what_looking_cost(planned):
    """The model's results are those of the best look; the last weights' stand beside them."""
    put_back = edit(planned.root / "params.yaml", lambda text: text.replace("keep: last", "keep: [best, last]"))
    *_, (name, *argv), _ = commands(["full"])
    try:
        planned.stage(name, *argv)
    finally:
        put_back()
    made = FineTuneRecord.load(planned.root / "data/models/full-seed1")
    best, last = made.kept
    assert (best.keep, last.keep, last.step) == ("best", "last", made.steps)
    assert made.steps == made.steps_planned
    assert made.looks == sum(point.step > 0 for point in made.curve)
    assert made.curve[-1].flops == made.flops - made.flops_looks > 0
    assert {point.step: point.validation_loss for point in made.curve}[best.step] == made.validated.validation_loss
    assert best.test_loss > 0
    card = (planned.root / "data/models/full-seed1/README.md").read_text()
    assert f"The model has the weights of step {best.step}, the best of {made.looks} looks" in card
