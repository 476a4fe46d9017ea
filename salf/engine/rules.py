"""How a task's answers are told right from wrong."""

from collections.abc import Mapping
from typing import Any

from salf.engine.candidates import CandidateRule
from salf.engine.label_tree import LabelTree

Rule = LabelTree | CandidateRule | None  # label words, candidates of each example, or free answers


def rule_of(meta: Mapping[str, Any]) -> Rule:
    """The rule of a prepared data set, from its ``meta.json``."""
    if meta["labels"]:
        words = {label["label"]: label["token_ids"] for label in meta["labels"]}
        return LabelTree.of(words, whole=meta.get("end_token_id") is not None)
    return CandidateRule(meta["choice_score"]) if meta["task"] == "multiple-choice" else None
