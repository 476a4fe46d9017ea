"""Full fine-tuning and half at the same learning rates: what depth costs, apart from the rate."""

import pandas as pd

from stages.study.measured import FULL, Study

_KEY = ["data_set", "learning_rate", "seed"]
_KEPT = {(True, True): "both", (True, False): "full", (False, True): "half", (False, False): ""}


def at_equal_rates(study: Study, model: str, half: str) -> pd.DataFrame:
    """Every rate at which both were trained with the same seeds, as far as the outcomes are kept.

    Args:
        study: what was measured.
        model: the base model.
        half: the method that is compared with full fine-tuning.

    Returns:
        A row per dataset and rate: how many seeds both have; accuracies on test and validation data in points, means
        over these seeds, as the splits are drawn; whose kept rate this is (``full``, ``half``, ``both`` or empty).
    """
    tables = [study.runs.rename(columns={"quality": "test_accuracy"}).assign(kept=True)]
    if len(study.rates):
        tables.append(study.rates[study.rates["point"].isin(study.runs["point"])].assign(kept=False))
    known = pd.concat(tables, join="inner").dropna(subset=["test_accuracy", "validation_accuracy"])
    known = known[(known["model"] == model) & (known["budget"] == "epochs")]
    sides = [known[known["method"] == method].drop_duplicates(_KEY) for method in (FULL, half)]
    grouped = sides[0].merge(sides[1], on=_KEY, suffixes=("_full", "_half")).groupby(["data_set", "learning_rate"])
    values = [f"{split}_accuracy_{side}" for split in ("test", "validation") for side in ("full", "half")]
    kept = grouped[["kept_full", "kept_half"]].any()
    names = [_KEPT[bool(one), bool(other)] for one, other in kept.to_numpy()]
    return (100 * grouped[values].mean()).assign(seeds=grouped.size(), kept=names).reset_index()
