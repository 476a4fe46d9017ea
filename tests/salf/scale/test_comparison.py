"""Fine-tunes made here beside what was predicted for them: records whose numbers make a known ratio."""

import json

import pytest

from salf.cli import main
from salf.records import StatesRecord
from stages.common.params import load_params
from tests.conftest import PROJECT
from tests.fine_tune_records import fine_tune_clock, fine_tune_record
from tests.plan.conftest import write_base, write_prepared

EPOCHS, BATCH = 3, 8
SCHEDULE = {"batch_size": BATCH, "accumulate": 1, "gradient_checkpointing": False}


@pytest.fixture
def chain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return Chain(tmp_path, capsys)


class Chain:
    """A project's folder with a base and prepared data; this machine computes 10^12 operations a second."""

    def __init__(self, root, capsys):
        self.root, self.capsys = root, capsys
        write_base(root / "data/base")
        write_prepared(root / "data/prepared")
        meta = json.loads((root / "data/prepared/meta.json").read_text())
        meta["splits"]["train"]["sha256"] = "d1"
        (root / "data/prepared/meta.json").write_text(json.dumps(meta))
        (root / "reports/runs").mkdir(parents=True)
        on_paper = self.scale("--teraflops", "1")["predictions"][0]["boundaries"]
        self.seconds = {point["boundary"]: point["seconds"] for point in on_paper}
        self.add("full-seed1", 0, 4.0)

    def scale(self, *words):
        workload = ["--prepared", "data/prepared", f"--epochs={EPOCHS}", f"--batch-rows={BATCH}"]
        main(["scale", "--config", "data/base", *workload, *words, "--json", "out.json"])
        self.told = " ".join(self.capsys.readouterr().out.split())
        return json.loads((self.root / "out.json").read_text())

    def add(self, name, boundary, training, *, cache=0.0, origin="computed", run=(), clock=(), machine=()):
        """A fine-tune that took so many seconds; validation's states took as long as training's."""
        made = self.root / "data/models" / name
        made.mkdir(parents=True)
        schedule = load_params(PROJECT / "params.yaml").finetune.model_copy(update=SCHEDULE)
        record = {
            "method": "salf",
            "boundary": boundary,
            "epochs": EPOCHS,
            "params": fine_tune_record().params.model_copy(update={"finetune": schedule}),
            "flops": round(1e12 * (training + 2 * cache)),
            "base_sha256": "ab" * 32,
            "data_sha256": {"train": "d1"},
        }
        fine_tune_record(**{**record, **dict(run)}).save(made)
        seconds = {"seconds_computing": cache, "seconds": cache}
        states = StatesRecord(origin=origin, begun=0, kept="memory", bytes=1, **seconds)
        measured = {
            "seconds_training": training,
            "seconds_cache": 2 * cache,
            "boundary_states": {"training": states, "validation": states} if boundary else {},
            "machine": fine_tune_clock().machine.model_copy(update=dict(machine)),
        }
        fine_tune_clock(**{**measured, **dict(clock)}).save(self.root / f"reports/runs/{name}.json")

    def compared(self):
        return {row["run"]: row for row in self.scale("--measured", "full-seed1")["predicted_and_measured"]}


def test_a_run_that_took_half_and_one_that_took_twice_its_prediction(chain):
    chain.add("salf-seed1", 4, chain.seconds[4] / 2)
    chain.add("freeze-2-seed1", 2, 1.5 * chain.seconds[2], cache=0.5 * chain.seconds[2])
    rows = chain.compared()
    assert set(rows) == {"full-seed1", "salf-seed1", "freeze-2-seed1"}
    assert (rows["salf-seed1"]["boundary"], rows["salf-seed1"]["ratio"]) == (4, pytest.approx(2))
    assert rows["salf-seed1"]["predicted_seconds"] == pytest.approx(chain.seconds[4])
    assert rows["salf-seed1"]["measured_seconds"] == pytest.approx(chain.seconds[4] / 2)
    assert (rows["freeze-2-seed1"]["boundary"], rows["freeze-2-seed1"]["ratio"]) == (2, pytest.approx(0.5))
    assert "Predicted and measured: this chain's fine-tunes at 1 TFLOP/s, measured by full-seed1" in chain.told
    assert "salf-seed1 4" in chain.told
    assert "2.00" in chain.told
    assert "0.50" in chain.told


def test_a_runs_own_epochs_are_predicted_whatever_was_asked_for(chain):
    chain.add("full-seed2", 0, chain.seconds[0], run={"epochs": 2 * EPOCHS})
    assert chain.compared()["full-seed2"]["ratio"] == pytest.approx(2)


def test_without_a_cache_the_frozen_layers_are_predicted_for_every_epoch(chain):
    chain.add("once-seed1", 4, 1.0, run={"epochs": 1})
    chain.add("cached-seed1", 4, 1.0)
    chain.add("uncached-seed1", 4, 1.0, origin="off")
    seconds = {name: row["predicted_seconds"] for name, row in chain.compared().items()}
    assert seconds["uncached-seed1"] == pytest.approx(EPOCHS * seconds["once-seed1"])
    assert seconds["once-seed1"] < seconds["cached-seed1"] < seconds["uncached-seed1"]


@pytest.mark.parametrize(
    "other",
    [
        {"run": {"method": "salf+lora"}},
        {"run": {"method": "first-n"}},
        {"run": {"method": "lisa"}},
        {"run": {"base_sha256": "another"}},
        {"run": {"data_sha256": {"train": "another"}}},
        {"machine": {"device": "cuda"}},
        {"machine": {"threads": 1}},
        {"clock": {"processes": 2}},
    ],
)
def test_what_the_prediction_is_not_about_is_left_out(chain, other):
    chain.add("other-seed1", 4, 1.0, **other)
    assert set(chain.compared()) == {"full-seed1"}


def test_a_run_without_a_record_is_left_out_and_without_a_base_nothing_is_compared(chain):
    chain.add("salf-seed1", 4, 1.0)
    (chain.root / "reports/runs/salf-seed1.json").unlink()
    assert set(chain.compared()) == {"full-seed1"}
    main(["scale", "--config", "gpt2", "--measured", "full-seed1", "--json", "out.json"])
    assert "Predicted and measured" in chain.capsys.readouterr().out
    (chain.root / "data/base/base.json").unlink()
    main(["scale", "--config", "gpt2", "--measured", "full-seed1", "--json", "out.json"])
    assert json.loads((chain.root / "out.json").read_text())["predicted_and_measured"] == []
    assert "Predicted and measured" not in chain.capsys.readouterr().out


def test_a_rate_that_was_not_measured_is_held_to_nothing(chain):
    assert chain.scale("--teraflops", "1")["predicted_and_measured"] == []


def test_a_record_that_lacks_an_entry_is_one_line(chain):
    chain.add("salf-seed1", 4, 1.0, clock={"boundary_states": {}})
    assert main(["scale", "--config", "gpt2", "--measured", "full-seed1"]) == 2
    told = chain.capsys.readouterr().err
    assert "salf-seed1: its measurements have no boundary states" in told
    assert told.count("\n") == 1
