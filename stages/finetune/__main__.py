"""Stage ``finetune``: params, base, data, plan → data/models/<run>."""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from salf.at_boundary import at_boundary
from salf.engine.batches import Split
from salf.engine.models.shards import shard_hashes
from salf.engine.rules import rule_of
from salf.engine.runtime import choose_runtime, machine_facts, peak_memory_bytes
from salf.engine.training.processes import Processes, are_several, joined
from salf.engine.training.scope import scope_of
from salf.engine.training.workbench import Workbench
from salf.engine.tuning import Arm, Found, Tuning, best_of, race_settings
from salf.files import code_hashes, digest_of, replacing_folder, require, sha256_file, work_folder
from salf.methods import RACE, checked, method_of
from salf.plan import FILE_NAME, FreezePlan
from salf.plan_records import Certainty, SelectedBoundary, Tuned
from salf.records import BaseRecord, FineTuneClock, FineTuneParams, FineTuneRecord, PreparedRecord, read_base
from salf.selectors import SELECTORS
from salf.settings import SEEDS, Count, Device, Finetune, Group, Race
from stages.common.command import BASE, PREPARED, exit_code, parser_of
from stages.common.params import Room, load_params
from stages.finetune.card import trained_words, write_cards
from stages.finetune.launch import end_with_launcher, launch
from stages.finetune.save import Base, save_answer_side_model, save_model


class Source(Group):
    """The part of ``model`` that adapters name."""

    source: str


class Control(Group):
    """The part of ``plan`` that is a method's."""

    first_n: Count | None


class FinetuneRoom(Room):
    """The parameters that this stage reads."""

    device: Device
    finetune: Finetune
    model: Source
    plan: Control
    race: Race


class Asked(NamedTuple):
    """The method of a run, and its name in the comparison."""

    label: str
    method: str
    settings: Finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune the base model by one method with one seed."""
    args = _parser().parse_args(argv)
    room = FinetuneRoom.load()
    asked = _asked(args, room)
    if asked.settings.processes > 1 and not are_several():
        launch("stages.finetune", sys.argv[1:] if argv is None else argv, asked.settings.processes)
        return
    end_with_launcher()
    with joined(room.device.kind) as processes:
        _fine_tune(args, room, asked, processes)


def _asked(args: argparse.Namespace, room: FinetuneRoom) -> Asked:
    if args.variant is None:
        return Asked(args.method, args.method, room.finetune)
    variant = load_params().compare.variant(args.variant)
    return Asked(args.variant, variant.method, variant.settings(room.finetune))


def _fine_tune(args: argparse.Namespace, room: FinetuneRoom, asked: Asked, processes: Processes) -> None:
    base, meta = BaseRecord.load(args.base), PreparedRecord.load(args.prepared)
    plan = FreezePlan.load(require(args.plan, made_by="plan"))
    runtime = choose_runtime(room.device)
    racing = {"race": room.race} if asked.method == RACE else {}
    read = FineTuneParams(device=room.device, finetune=asked.settings, first_n=room.plan.first_n, **racing)
    inputs = {
        "base": [base.weights_sha256, sha256_file(args.base / "config.json")],
        "data": meta.model_dump(mode="json"),
        "plan": sha256_file(args.plan),
        "params": read.model_dump(mode="json"),
        "runtime": [runtime.device.type, runtime.dtype_name],
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "method": asked.label,
        "seed": args.seed,
        "processes": processes.count,
        "code": code_hashes(),
    }
    settings = race_settings(asked.settings) if racing else asked.settings
    tuning = Tuning(
        bench=Workbench(base=args.base, runtime=runtime, settings=settings, processes=processes),
        plan=plan,
        name=asked.label,
        seed=args.seed,
        first_n=room.plan.first_n,
        training=Split.read(args.prepared, "train"),
        validation=Split.read(args.prepared, "validation"),
        test=None if racing else Split.read(args.prepared, "test"),
        rule=rule_of(meta),
        facts={
            meta.task: f"data.task = {meta.task}",
            **({"chat_template": "prepare.chat_template"} if meta.chat_template else {}),
        },
        arms=_arms(asked, room, plan, args.seed),
        keep=room.race.keep if racing else None,
        unfinished=work_folder(args.out, digest_of(inputs)),
    )
    print(f"{asked.label}, seed {args.seed}: {runtime.device} in {runtime.dtype_name} ({runtime.reason})")
    began = time.perf_counter()
    found = best_of(tuning)
    seconds = time.perf_counter() - began
    memory = processes.total(peak_memory_bytes(runtime.device))
    if not processes.main:
        return

    method, setup, scope, trained = found.arm.method, found.setup, found.setup.scope, found.training
    before_budget = next((each.before_budget for n, each in plan.boundaries.items() if n == method.scope), None)
    with replacing_folder(args.out) as folder:
        named = Base.of(base, room.model.source, args.base)
        if setup.answer_side is None:
            changed = save_model(found.trainable, args.base, folder, named, meta.end_token_id)
        else:
            changed = save_answer_side_model(found.trainable, folder, named, setup.answer_side)
        record = FineTuneRecord(
            schema_version=1,
            method=method.name,
            variant=args.variant,
            seed=args.seed,
            boundary=scope.boundary,
            boundary_before_budget=before_budget,
            trained_layers=list(scope.layers_within(trained.steps)),
            trained_units=found.trainable.units,
            changed_units=changed,
            parameters=plan.parameters.total,
            trained_parameters=found.trainable.count,
            learning_rate=found.arm.rate,
            grid=found.grid,
            validation_examples=len(tuning.validation),
            epochs=setup.epochs,
            steps=trained.steps,
            flops=found.flops,
            flops_before=None if found.race else trained.flops_before,
            flops_backward=found.flops_backward,
            curve=trained.curve,
            **_keeping(found, settings),
            params=read,
            plan_sha256=sha256_file(args.plan),
            base_sha256=base.weights_sha256,
            data_sha256={name: split.sha256 for name, split in meta.splits.items()},
            shards=shard_hashes(folder),
        )
        record.save(folder)
        own = _plan_of(found, plan, args) if found.race else plan
        write_cards(folder, record, own, base, meta, named)
        own.save(folder / FILE_NAME)
    args.measured.parent.mkdir(parents=True, exist_ok=True)
    FineTuneClock(
        schema_version=1,
        method=asked.method,
        variant=args.variant,
        seed=args.seed,
        seconds_total=seconds,
        seconds_cache=found.seconds_cache,
        boundary_states=setup.states,
        **({"prompts": setup.prompts} if setup.prompts else {}),
        seconds_training=found.seconds_training,
        seconds_per_step=statistics.median(trained.step_seconds),
        peak_memory_bytes=memory,
        optimizer_bytes=trained.optimizer_bytes,
        processes=processes.count,
        machine=machine_facts(runtime),
    ).save(args.measured)
    shutil.rmtree(tuning.unfinished)
    print(
        f"{asked.label}: {trained_words(record, base.layers)} trained, {record.trained_parameters:,} parameters; "
        f"validation loss {record.validated.validation_loss:.4f}"
        f"{'' if (score := record.validated.validation_accuracy) is None else f', accuracy {score}'}; "
        f"{seconds:.0f} s"
    )


def _keeping(found: Found, settings: Finetune) -> dict[str, Any]:
    """What the record holds of a race, of weights that are not the last of all planned steps, and of a technique."""
    training, looks = found.training, {}
    if found.race:
        looks = {"race": found.race, "flops_looks": sum(arm.flops_validation for arm in found.race.arms)}
    if settings.decided_by_looks:
        looks = {
            "looks": sum(point.step > 0 for point in training.curve),
            "steps_planned": found.setup.steps,
            "flops_looks": training.flops_validation,
        }
    looks |= {"observed": training.observed} if training.observed else {}
    return {**looks, **({"kept": training.kept} if settings.decided_by_looks or settings.keep != ["last"] else {})}


def _arms(asked: Asked, room: FinetuneRoom, plan: FreezePlan, seed: int) -> list[Arm]:
    """The arms of a race, or a method at every rate of its grid, ascending."""
    if asked.method == RACE:
        return [Arm(method_of(name), rate) for name, rate in room.race.pairs]
    method = method_of(asked.method)
    boundary = scope_of(method, plan, asked.settings, seed, room.plan.first_n).boundary
    return [Arm(method, rate) for rate in asked.settings.rates(method.name, boundary)]


def _plan_of(found: Found, plan: FreezePlan, args: argparse.Namespace) -> FreezePlan:
    """The winner's own plan: the boundary that a race measured to be the best, with method and learning rate."""
    method, boundary = found.arm.method, found.setup.scope.boundary
    reason = f"{method.name} at learning rate {found.arm.rate:g} won a race on the validation split"
    return FreezePlan.model_validate(
        {
            **dict(plan),
            **at_boundary(read_base(args.base), boundary),
            "selector": "oracle",
            "reason": reason,
            "certainty": Certainty(win_share=None, value=None, low=None, high=None, words="run.json holds the race"),
            "fallback": None,
            "runners_up": [],
            "boundaries": {
                **plan.boundaries,
                "oracle": SelectedBoundary(boundary=boundary, reason=reason, scores=None),
            },
            "tuned": Tuned(
                method=method.name,
                positions=method.word("positions").name,
                form=method.form.name,
                learning_rate=found.arm.rate,
            ),
        }
    )


def _method(name: str) -> str:
    try:
        return checked(name, SELECTORS)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None


def _seed(word: str) -> int:
    if not word.isdecimal() or int(word) >= SEEDS:
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number from 0 to {SEEDS - 1}")
    return int(word)


def _parser() -> argparse.ArgumentParser:
    places = {
        "base": BASE,
        "prepared": PREPARED,
        "plan": ("data/plan/freeze_plan.json", "the freeze plan"),
        "out": ("data/models/salf-seed1", "the model folder to write"),
        "measured": ("reports/runs/salf-seed1.json", "JSON to write: seconds and memory"),
    }
    description = (
        "Fine-tune the base model by one method with one seed. Frozen layers stay byte-identical. "
        "A killed run resumes from its last checkpoint."
    )
    parser = parser_of("finetune", description, places)
    parser.epilog = f"{parser.epilog} --method salf --seed 1"
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--method",
        type=_method,
        help="a selector or freeze-<k>, alone or with words such as +lora (docs/techniques.md); or first-n, lisa, race",
    )
    how.add_argument("--variant", help="an entry of compare.variants: a method with settings of its own")
    parser.add_argument("--seed", type=_seed, required=True, help="seed of the order of examples and of adapters")
    return parser


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_parser()))
