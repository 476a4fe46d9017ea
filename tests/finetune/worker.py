"""One of several processes that train a tiny model together; started by the tests through a launcher.

``python -m tests.finetune.worker FOLDER SETTINGS``: SETTINGS is JSON: boundary, params, draws of layers, and a
fault to meet; or ``open``, the modes in which to open boundary states instead; or ``race``, learning rates that race.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from salf.engine.batches import Split
from salf.engine.training.checkpoint import Checkpoint
from salf.engine.training.loop import train
from salf.engine.training.processes import Processes, joined
from salf.engine.training.scope import LayerDraws
from salf.engine.training.step import Stepper
from salf.engine.training.workbench import Workbench
from salf.engine.tuning import Arm, Tuning, best_of, race_settings
from salf.errors import UserError
from salf.methods import Method
from stages.common.command import exit_code
from stages.finetune.launch import end_with_launcher
from tests.engine.boundary_cache.tiny_task import Task
from tests.engine.training.test_answer_side_training import job as answer_job
from tests.engine.training.tiny_training import RUNTIME, SHARED, made_examples, params, run, trainable, weights

FAULT_AT_STEP = 3


def main(argv: list[str] | None = None) -> None:
    """Train and write what every process ended with."""
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    end_with_launcher()
    with joined("cpu") as processes:
        print(f"process {processes.rank} of {processes.count}")
        if "open" in settings:
            _open(folder, settings["open"], processes)
            return
        if "race" in settings:
            _race(folder, settings["race"], processes)
            return
        _meet(settings.get("fault"), processes.rank)
        draws = LayerDraws(*settings["draws"]) if "draws" in settings else None
        checkpoint = folder / "checkpoint.safetensors" if settings.get("checkpoint") else None
        options = {"checkpoint": checkpoint, "processes": processes}
        if "method" in settings:
            job = answer_job(settings["method"], params(**settings["params"]), **options)
            made, done = job.trainable, train(job)
        else:
            made = trainable(settings["boundary"], draws=draws)
            done = run(made, made_examples(), params(**settings["params"]), **options)
        save_file(weights(made), folder / f"weights-{processes.rank}.safetensors")
        record = {"curve": [point.model_dump() for point in done.curve], "flops": done.flops, "steps": done.steps}
        (folder / f"record-{processes.rank}.json").write_text(json.dumps(record))


def _open(folder: Path, modes: list[str], processes: Processes) -> None:
    """Open a split's boundary states, one mode after another, and write what came of it."""
    task, passes = Task(folder / "cache"), []
    task.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    for number, mode in enumerate(modes):
        passes.clear()
        cache = replace(task.cache(mode), processes=processes)
        opened = cache.open(task.examples)
        processes.agree(number, "openings")  # the first one has written its file
        record = {"origin": opened.origin, "kept": opened.kept, "passes": len(passes)}
        (folder / f"opened-{number}-{processes.rank}.json").write_text(json.dumps(record))
        save_file({"rows": opened.start.rows.clone()}, folder / f"rows-{number}-{processes.rank}.safetensors")


def _race(folder: Path, rates: list[float], processes: Processes) -> None:
    """Race two epochs; the process that writes checkpoints takes its time, as with a large model."""
    save = Checkpoint.save

    def slowly(self, *arguments, **options):
        time.sleep(3 * self.writes)
        save(self, *arguments, **options)

    Checkpoint.save = slowly
    split, settings = Split(made_examples(), SHARED), race_settings(params(epochs=2))
    tuning = Tuning(
        bench=Workbench(base=folder / "data/base", runtime=RUNTIME, settings=settings, processes=processes),
        plan=None,
        name="race",
        seed=1,
        first_n=None,
        training=split,
        validation=split,
        test=None,
        rule=None,
        arms=[Arm(Method("full"), rate) for rate in rates],
        keep=1,
        unfinished=folder / "unfinished",
    )
    found = best_of(tuning)
    save_file(weights(found.trainable), folder / f"weights-{processes.rank}.safetensors")
    (folder / f"record-{processes.rank}.json").write_text(found.race.model_dump_json())


def _meet(fault: str | None, rank: int) -> None:
    """Arrange for a fault at a later step."""
    if fault is None:
        return
    take = Stepper.take

    def faulty(self, parts, rate, number):
        if number == FAULT_AT_STEP:
            if fault == "one" and rank == 1:
                raise UserError("the second process has a fault")
            if fault == "all":
                raise UserError("all processes have the same fault")
            if fault == "killed" and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "launcher killed" and rank == 0:
                os.kill(int(os.environ["SALF_LAUNCHER"]), signal.SIGKILL)
        return take(self, parts, rate, number)

    Stepper.take = faulty


if __name__ == "__main__":
    sys.exit(exit_code(main))
