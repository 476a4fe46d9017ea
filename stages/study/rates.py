"""Full fine-tuning and a frozen prefix at the same learning rates: what depth costs, apart from the rate."""

import pandas as pd

from stages.study.measured import FULL, Study

_KEY = ["data_set", "learning_rate", "seed"]


def at_equal_rates(study: Study, model: str, method: str) -> pd.DataFrame:
    """Every rate at which both were trained with the same seeds, as far as the outcomes are kept.

    Args:
        study: what was measured.
        model: the base model.
        method: beside full fine-tuning.

    Returns:
        A row per dataset and rate: how many seeds both have; accuracies on test and validation data in points, means
        over these seeds, as the splits are drawn; whose kept rate this is (``full``, ``method``, ``both`` or empty).
    """
    tables = [study.runs.rename(columns={"quality": "test_accuracy"})]
    if len(study.rates):
        tables.append(study.rates[study.rates["point"].isin(study.runs["point"])])
    known = pd.concat(tables, join="inner").dropna(subset=["test_accuracy", "validation_accuracy"])
    known = known[(known["model"] == model) & (known["budget"] == "epochs")]
    full, other = (known[known["method"] == one].drop_duplicates(_KEY) for one in (FULL, method))
    both = full.merge(other, on=_KEY, suffixes=("_full", "_method"))
    values = [f"{split}_accuracy_{side}" for split in ("test", "validation") for side in ("full", "method")]
    grouped = both.groupby(["data_set", "learning_rate"], sort=True)
    found = (100 * grouped[values].mean()).assign(seeds=grouped.size()).reset_index()
    rates = [set(zip(one["data_set"], one["learning_rate"], strict=True)) for one in _kept(study, model, method)]
    pairs = zip(found["data_set"], found["learning_rate"], strict=True)
    names = {(True, True): "both", (True, False): "full", (False, True): "method", (False, False): ""}
    return found.assign(kept=[names[pair in rates[0], pair in rates[1]] for pair in pairs])


def _kept(study: Study, model: str, method: str) -> list[pd.DataFrame]:
    runs = study.runs[(study.runs["model"] == model) & (study.runs["budget"] == "epochs")]
    return [runs[runs["method"] == one] for one in (FULL, method)]
