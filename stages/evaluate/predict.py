"""Lets a model folder answer the test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from stages.common.answers import Reader
from stages.common.batches import Example
from stages.common.label_tree import LabelTree
from stages.common.models.adapter import open_model
from stages.common.params import Evaluate
from stages.common.progress import progress
from stages.common.runtime import Runtime
from stages.evaluate.generate import exact_match, write_answers
from stages.evaluate.scores import Predictions


@dataclass(frozen=True)
class Predictor:
    """What all models are asked, and how."""

    runtime: Runtime
    params: Evaluate
    meta: dict[str, Any]
    base: Path
    test: Sequence[Example]

    def predict(self, folder: Path, name: str) -> Predictions:
        """Answers of the model in ``folder``."""
        labels = self.meta["labels"]
        tree = LabelTree.of({label["label"]: label["token_ids"] for label in labels}) if labels else None
        model = open_model(folder, self.runtime.device, self.runtime.dtype)
        reader = Reader(model, self.runtime, tree, self.params.batch_tokens)
        with progress(f"evaluating {name}", len(self.test), "examples") as advance:
            answers = reader.read(self.test, self.meta["shared_prefix_tokens"], advance=lambda n: advance(n, ""))
        loss = np.array([answer.loss for answer in answers])
        tokens = np.array([len(example.answer_ids) for example in self.test], float)
        if tree is not None:
            said = [answer.predicted or "" for answer in answers]
            correct = [label == example.label for label, example in zip(said, self.test, strict=True)]
        else:
            tokenizer = Tokenizer.from_file(str(self.base / "tokenizer.json"))
            with progress(f"{name} writes its answers", len(self.test), "examples") as advance:
                said = write_answers(
                    model,
                    tokenizer,
                    self.test,
                    self.params.generate_tokens,
                    self.params.batch_tokens,
                    lambda n: advance(n, ""),
                )
            marker = self.params.answer_marker
            correct = [exact_match(text, example.answer, marker) for text, example in zip(said, self.test, strict=True)]
        return Predictions(said, np.array(correct, float), loss, tokens, [answer.probability for answer in answers])


def prediction_rows(predictions: Mapping[str, Predictions], test: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows of ``predictions.parquet``; grain: model and test example."""
    return [
        {
            "run": run,
            "example_id": example.example_id,
            "text": example.text,
            "label": example.label if example.label is not None else example.answer,
            "predicted": said.predicted[i],
            "correct": bool(said.correct[i]),
            "probability": said.probability[i],
            "loss": None if said.loss is None else float(said.loss[i]),
        }
        for run, said in predictions.items()
        for i, example in enumerate(test)
    ]
