"""The field's harness (lm-eval) on model folders: what a model could do before it was fine-tuned, and after.

lm-eval is an extra of its own (``harness`` in pyproject.toml); no stage needs it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from salf.answer_folder import is_answer_side
from salf.engine.models.adapter import code_trusted
from salf.engine.models.shards import shard_hashes
from salf.engine.runtime import Runtime, choose_runtime
from salf.errors import UserError
from salf.files import digest_of, require, significant, write_json
from stages.common.command import exit_code
from stages.common.params import load_params
from stages.evaluate.predict import open_trained

BASE: Final = "base"


@dataclass(frozen=True)
class Score:
    """A metric of a task; ``better`` is 1 or −1, ``by_example`` [n] where ``value`` is their mean."""

    value: float
    better: int
    by_example: NDArray[np.float64] | None

    def entry(self, before: "Score") -> dict[str, float | int]:
        """The value and its difference from the base's, whose standard error is that of paired examples."""
        made: dict[str, float | int] = {"value": significant(self.value), "better": self.better}
        if self.by_example is not None:
            made["standard_error"] = _standard_error(self.by_example)
        if self is not before:
            made["minus_base"] = significant(self.value - before.value)
            if self.by_example is not None and before.by_example is not None:
                made["minus_base_standard_error"] = _standard_error(self.by_example - before.by_example)
        return made


Scores = dict[str, dict[str, Score]]  # task → metric → score


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks on the base and on every model; compare each with the base, example by example."""
    args = _arguments(argv)
    runtime = choose_runtime(load_params().device)
    folders = {BASE: require(args.base, made_by="base")}
    for folder in args.models:
        if folder.name in folders:
            raise UserError(f"{folder}: another model is called {folder.name} too; the folder's name names its results")
        folders[folder.name] = require(folder, made_by="finetune")
        if is_answer_side(folder):
            raise UserError(
                f"{folder}: an answer-side model; lm-eval does not say where a prompt ends, so it cannot run one "
                "(salf.AnswerSideModel.from_pretrained(folder).score does)"
            )
    try:
        from lm_eval import __version__ as version
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}); pip install 'salf[harness]', or lm-eval[hf]") from None
    manager = _manager(args.tasks, args.include, version)
    found = {name: _run(folder, runtime, args, manager) for name, folder in folders.items()}
    models = {
        name: {
            "weights_sha256": digest_of(shard_hashes(folders[name])),
            "tasks": {
                task: {metric: score.entry(found[BASE][task][metric]) for metric, score in metrics.items()}
                for task, metrics in scores.items()
            },
        }
        for name, scores in found.items()
    }
    settings = {"fewshot": args.fewshot, "limit": args.limit, "dtype": runtime.dtype_name}
    write_json(args.out, {"schema": 1, "lm_eval": version, "settings": settings, "models": models})
    _print(models)


def _manager(tasks: Sequence[str], include: Path | None, version: str) -> Any:
    """lm-eval's manager that knows all tasks."""
    from lm_eval.tasks import TaskManager

    # Reading lm-eval's own tasks takes half a minute: not where the folder holds all requested tasks.
    for with_own in (False, True) if include else (True,):
        manager = TaskManager(include_path=str(include) if include else None, include_defaults=with_own)
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if not unknown:
            return manager
    raise UserError(f"--tasks: lm-eval {version} has no task {', '.join(unknown)}; lm-eval ls tasks lists them")


def _run(folder: Path, runtime: Runtime, args: argparse.Namespace, manager: Any) -> Scores:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=open_trained(folder, args.base, runtime).network,
        tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=code_trusted(args.base)),
        batch_size=args.batch_size,
    )
    asked = {"tasks": args.tasks, "num_fewshot": args.fewshot, "limit": args.limit}
    try:
        answered = simple_evaluate(model=model, task_manager=manager, bootstrap_iters=0, **asked)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--tasks: lm-eval cannot run {', '.join(args.tasks)}: {reason}") from None
    return {task: _scores(answered, task) for task in answered["results"]}


def _scores(answered: Mapping[str, Any], task: str) -> dict[str, Score]:
    """A task's metrics; lm-eval names them ``metric,filter``."""
    higher, samples = answered["higher_is_better"].get(task, {}), answered["samples"].get(task, [])
    found = {}
    for key, value in answered["results"][task].items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        each = [one[metric] for one in samples if one.get("filter", chosen) == chosen and metric in one]
        numbers = np.array(each, float) if each and all(isinstance(one, int | float) for one in each) else None
        if numbers is not None and not np.isclose(numbers.mean(), value):
            numbers = None
        name = metric if chosen == "none" else f"{metric} ({chosen})"
        found[name] = Score(float(value), -1 if higher.get(metric) is False else 1, numbers)
    return found


def _standard_error(values: NDArray[np.float64]) -> float:
    return significant(float(values.std(ddof=1) / np.sqrt(len(values)))) if len(values) > 1 else 0.0


def _print(models: Mapping[str, Any]) -> None:
    for name, model in models.items():
        for task, metrics in model["tasks"].items():
            for metric, entry in metrics.items():
                gap, error = entry.get("minus_base"), entry.get("minus_base_standard_error")
                words = ("" if gap is None else f", {gap:+.4f} from the base") + (f" ± {error:.4f}" if error else "")
                print(f"{name}, {task}: {metric} {entry['value']:.4f}{words}")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.evaluate.harness",
        description="Score the base and fine-tuned models on tasks of the LM Evaluation Harness: what was forgotten?",
        epilog="example: python -m stages.evaluate.harness --base data/base --models data/models/salf-seed1 "
        "--tasks arc_easy hellaswag --limit 200 --out reports/harness.json",
    )
    parser.add_argument("--base", type=Path, required=True, help="the base model's folder")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders of fine-tuned models")
    parser.add_argument("--tasks", nargs="+", required=True, help="lm-eval's names of tasks or groups of tasks")
    parser.add_argument("--include", type=Path, help="a folder of tasks of your own (YAML)")
    parser.add_argument("--fewshot", type=int, help="worked examples per prompt (default: the task's own number)")
    parser.add_argument("--limit", type=int, help="maximum number of examples per task (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="examples per forward pass (default: 16)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write: the scores")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_code(main))
