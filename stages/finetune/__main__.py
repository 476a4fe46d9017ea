"""Stage ``finetune``: params, base, data, plan → data/models/<run>."""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from salf.cost import ModelShape
from salf.engine.answers import Reader
from salf.engine.batches import read_examples
from salf.engine.models.shards import shard_hashes
from salf.engine.rules import rule_of
from salf.engine.runtime import choose_runtime, machine_facts, peak_memory_bytes
from salf.engine.training.processes import Processes, are_several, joined
from salf.files import (
    code_hashes,
    digest_of,
    read_json,
    replacing_folder,
    require,
    sha256_file,
    work_folder,
    write_text,
)
from salf.methods import checked, method_of
from salf.plan import FILE_NAME, FreezePlan
from salf.records import FineTuneClock, FineTuneParams, FineTuneRecord
from salf.selectors import SELECTORS
from salf.settings import SEEDS, Count, Device, Finetune, Group
from stages.common.command import exit_code
from stages.common.params import Room
from stages.finetune.card import adapter_card, model_card, trained_words
from stages.finetune.launch import end_with_launcher, launch
from stages.finetune.save import Base, save_model
from stages.finetune.search import Bench, best_of_grid


class Source(Group):
    """The part of ``model`` that adapters name."""

    source: str


class Control(Group):
    """The part of ``plan`` that is a method's."""

    first_n: Count | None


class FinetuneRoom(Room):
    """What this stage reads."""

    device: Device
    finetune: Finetune
    model: Source
    plan: Control


def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune the base model by one method with one seed."""
    args = _arguments(argv)
    params = FinetuneRoom.load()
    if params.finetune.processes > 1 and not are_several():
        launch("stages.finetune", sys.argv[1:] if argv is None else argv, params.finetune.processes)
        return
    end_with_launcher()
    with joined(params.device.kind) as processes:
        _fine_tune(args, params, processes)


def _fine_tune(args: argparse.Namespace, params: FinetuneRoom, processes: Processes) -> None:
    base, meta = read_json(args.base / "base.json"), read_json(args.prepared / "meta.json")
    plan = FreezePlan.load(require(args.plan, made_by="plan"))
    runtime = choose_runtime(params.device)
    read = FineTuneParams(device=params.device, finetune=params.finetune, first_n=params.plan.first_n)
    data_hashes = {name: split["sha256"] for name, split in meta["splits"].items()}
    inputs = {
        "base": [base["weights_sha256"], sha256_file(args.base / "config.json")],
        "data": [data_hashes, meta],
        "plan": sha256_file(args.plan),
        "params": read.model_dump(mode="json"),
        "runtime": [runtime.device.type, runtime.dtype_name],
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "method": args.method,
        "seed": args.seed,
        "processes": processes.count,
        "code": code_hashes(),
    }
    unfinished = work_folder(args.out, digest_of(inputs))
    bench = Bench(
        base=args.base,
        plan=plan,
        method=args.method,
        runtime=runtime,
        params=params.finetune,
        first_n=params.plan.first_n,
        shape=ModelShape.from_config(read_json(args.base / "config.json")),
        training=read_examples(args.prepared, "train"),
        validation=read_examples(args.prepared, "validation"),
        test=read_examples(args.prepared, "test"),
        shared=meta["shared_prefix_tokens"],
        unfinished=unfinished,
        make_reader=lambda model: Reader(model, runtime, rule_of(meta), batch_tokens=1024),
        processes=processes,
    )
    print(f"{args.method}, seed {args.seed}: {runtime.device} in {runtime.dtype_name} ({runtime.reason})")
    began = time.perf_counter()
    search = best_of_grid(bench, args.seed)
    best = search.best
    seconds = time.perf_counter() - began
    memory = processes.total(peak_memory_bytes(runtime.device))
    if not processes.main:
        return

    method = method_of(args.method)
    before_budget = next((each.before_budget for name, each in plan.boundaries.items() if name == method.scope), None)
    with replacing_folder(args.out) as folder:
        named = Base.of(base, params.model.source, args.base)
        changed = save_model(best.trainable, args.base, folder, named, meta["end_token_id"])
        record = FineTuneRecord(
            schema_version=1,
            method=args.method,
            seed=args.seed,
            boundary=search.scope.boundary,
            boundary_before_budget=before_budget,
            trained_layers=list(search.scope.layers_within(best.training.steps)),
            trained_units=search.scope.units(best.training.steps),
            changed_units=changed,
            parameters=plan.parameters.total,
            trained_parameters=best.trainable.count,
            learning_rate=best.rate,
            grid=search.grid,
            validation_examples=len(bench.validation),
            epochs=search.epochs,
            steps=best.training.steps,
            flops=best.training.flops,
            curve=best.training.curve,
            params=read,
            plan_sha256=sha256_file(args.plan),
            base_sha256=base["weights_sha256"],
            data_sha256=data_hashes,
            shards=shard_hashes(folder),
        )
        record.save(folder)
        write_text(folder / "README.md", model_card(record, plan, base, meta))
        if method.lora:
            write_text(folder / "adapter" / "README.md", adapter_card(record, named, base, meta))
        plan.save(folder / FILE_NAME)
    args.measured.parent.mkdir(parents=True, exist_ok=True)
    steps = best.training.step_seconds
    FineTuneClock(
        method=args.method,
        seed=args.seed,
        seconds_total=seconds,
        seconds_cache=search.seconds_cache,
        boundary_states={split: opened.facts for split, opened in search.states.items()},
        seconds_training=sum(steps),
        seconds_per_step=statistics.median(steps),
        peak_memory_bytes=memory,
        processes=processes.count,
        machine=machine_facts(runtime),
    ).save(args.measured)
    shutil.rmtree(unfinished)
    print(
        f"{args.method}: {trained_words(record, base['layers'])} trained, {record.trained_parameters:,} parameters; "
        f"validation loss {record.last.validation_loss:.4f}, accuracy {record.last.validation_accuracy}; "
        f"{seconds:.0f} s"
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


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.finetune",
        description="Fine-tune the base model by one method with one seed. Frozen layers stay byte-identical. "
        "A killed run resumes from its last checkpoint.",
        epilog="example: python -m stages.finetune --base data/base --prepared data/prepared "
        "--plan data/plan/freeze_plan.json --method salf --seed 1 --out data/models/salf-seed1 "
        "--measured reports/runs/salf-seed1.json",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--prepared", type=Path, required=True, help="the prepared data's folder")
    parser.add_argument("--plan", type=Path, required=True, help="the freeze plan")
    parser.add_argument(
        "--method",
        type=_method,
        required=True,
        help="a selector or freeze-<k>, alone or with +lora; or lora, first-n, lisa",
    )
    parser.add_argument("--seed", type=_seed, required=True, help="seed of the order of examples and of adapters")
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--measured", type=Path, required=True, help="JSON to write: seconds and memory")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(main))
