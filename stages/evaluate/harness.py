"""The field's harness (lm-eval) on model folders: what a model could do before it was fine-tuned, and after.

Tasks are lm-eval's own by their names (it loads their data from the hub), or those of YAML files in a folder. lm-eval
is an extra of its own (``harness`` in pyproject.toml); no stage needs it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from salf.engine.models.adapter import code_trusted, open_model
from salf.engine.models.shards import shard_hashes, weights_digest
from salf.engine.runtime import Runtime, choose_runtime
from salf.errors import UserError
from salf.files import require, significant, write_json
from stages.common.command import exit_code
from stages.common.params import load_params

BASE: Final = "base"


@dataclass(frozen=True)
class Score:
    """A metric of a task.

    Attributes:
        value: as lm-eval aggregates it.
        better: 1 where higher is better, −1 where lower is.
        by_example: [n], where ``value`` is their mean; ``None`` where it is something else.
    """

    value: float
    better: int
    by_example: NDArray[np.float64] | None

    def entry(self, before: "Score") -> dict[str, float | int]:
        """The value beside the base's, as it stands in the artifact.

        The standard error of a difference is that of paired examples, which both models answered.
        """
        made: dict[str, float | int] = {"value": significant(self.value), "better": self.better}
        if self.by_example is not None:
            made["standard_error"] = significant(_standard_error(self.by_example))
        if self is before:
            return made
        made["minus_base"] = significant(self.value - before.value)
        if self.by_example is not None and before.by_example is not None:
            made["minus_base_standard_error"] = significant(_standard_error(self.by_example - before.by_example))
        return made


Scores = dict[str, dict[str, Score]]  # task → metric → score


def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks on the base and on every model; compare each with the base, example by example."""
    args = _arguments(argv)
    runtime = choose_runtime(load_params().device)
    folders = {BASE: require(args.base, made_by="base")}
    for folder in args.models:
        if folder.name in folders:
            raise UserError(f"{folder}: another model is called {folder.name} too; results go by the folder's name")
        folders[folder.name] = require(folder, made_by="finetune")
    harness = Harness(args.tasks, args.include, args.fewshot, args.limit, args.batch_size)
    found = {name: harness.run(folder, runtime, args.base) for name, folder in folders.items()}
    models = {
        name: {
            "weights_sha256": weights_digest(shard_hashes(folders[name])),
            "tasks": {task: _entries(metrics, found[BASE][task]) for task, metrics in scores.items()},
        }
        for name, scores in found.items()
    }
    settings = {"fewshot": args.fewshot, "limit": args.limit, "dtype": runtime.dtype_name}
    write_json(args.out, {"schema": 1, "lm_eval": harness.version, "settings": settings, "models": models})
    Console().print(_table(models))


class Harness:
    """lm-eval with chosen tasks.

    Attributes:
        version: lm-eval's.
    """

    def __init__(
        self, tasks: Sequence[str], include: Path | None, fewshot: int | None, limit: int | None, batch_size: int
    ) -> None:
        """Find the tasks.

        Args:
            tasks: their names.
            include: a folder of further tasks.
            fewshot: worked examples in front of each; ``None``: as many as the task says.
            limit: most examples of each; ``None``: all.
            batch_size: rows of a pass.

        Raises:
            UserError: lm-eval is not installed, or does not know a task.
        """
        self.version: str = _import().__version__
        self.tasks, self.fewshot, self.limit, self.batch_size = list(tasks), fewshot, limit, batch_size
        self._manager = self._find(str(include) if include else None)

    def _find(self, include: str | None) -> Any:
        from lm_eval.tasks import TaskManager

        # Reading lm-eval's own tasks takes half a minute: not where the folder holds all that are asked for.
        for with_own in (False, True) if include else (True,):
            manager = TaskManager(include_path=include, include_defaults=with_own)
            unknown = [task for task in self.tasks if task not in manager.all_tasks]
            if not unknown:
                return manager
        raise UserError(
            f"--tasks: lm-eval {self.version} has no task {', '.join(unknown)}; lm-eval ls tasks lists them"
        )

    def run(self, folder: Path, runtime: Runtime, base: Path) -> Scores:
        """Score the model in ``folder``.

        Args:
            folder: the model.
            runtime: device and precision.
            base: the base model's folder, which tells whether code that its author shipped may run.

        Raises:
            UserError: the model cannot be opened, or a task's data cannot be loaded.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model = HFLM(
            pretrained=open_model(folder, runtime.device, runtime.dtype, base=base).network,
            tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=code_trusted(base)),
            batch_size=self.batch_size,
        )
        try:
            told = simple_evaluate(
                model=model,
                tasks=self.tasks,
                num_fewshot=self.fewshot,
                limit=self.limit,
                task_manager=self._manager,
                bootstrap_iters=0,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--tasks: lm-eval cannot run {', '.join(self.tasks)}: {reason}") from None
        return {task: _scores(told, task) for task in told["results"]}


def _import() -> ModuleType:
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}); pip install 'salf[harness]', or lm-eval[hf]") from None
    return lm_eval


def _scores(told: Mapping[str, Any], task: str) -> dict[str, Score]:
    """A task's metrics; lm-eval names them ``metric,filter``."""
    higher, samples = told["higher_is_better"].get(task, {}), told["samples"].get(task, [])
    found = {}
    for key, value in told["results"][task].items():
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


def _entries(metrics: Mapping[str, Score], before: Mapping[str, Score]) -> dict[str, dict[str, float | int]]:
    return {name: score.entry(before[name]) for name, score in metrics.items()}


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _table(models: Mapping[str, Any]) -> Table:
    table = Table("model", "task", "metric", "value", "minus base", title="lm-eval")
    for name, entry in models.items():
        for task, metrics in entry["tasks"].items():
            for metric, score in metrics.items():
                error = score.get("minus_base_standard_error")
                difference = f"{score['minus_base']:+.4f}" if "minus_base" in score else ""
                table.add_row(
                    name, task, metric, f"{score['value']:.4f}", f"{difference} ± {error:.4f}" if error else difference
                )
    return table


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
