"""Quality against the number of training examples: from the metrics of a sweep's points to the page."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from flows.sweep import measures
from salf.errors import UserError
from salf.files import read_json
from salf.metrics import write_csv
from stages.report import quality
from stages.report.__main__ import main

DRAWS = {16: [0.5, 0.54, 0.61], 64: [0.7]}


@pytest.fixture(scope="module")
def swept(chain_of):
    """A chain, and the table of a sweep whose points have its metrics, but for an accuracy of their own."""
    chain = chain_of(seeds=(1,))
    points, metrics = {}, {}
    for size, draws in DRAWS.items():
        for seed, accuracy in enumerate(draws, 1):
            name = f"few-shot-{len(points) + 1}"
            points[name] = {"data.limits.train": size, "data.seed": seed}
            found = copy.deepcopy(read_json(chain.root / "reports/metrics.json"))
            found["methods"]["full"]["accuracy"] = accuracy
            one = {"value": accuracy / 2, "low": 0.0, "high": 1.0}
            paired = {
                "scores": {"accuracy": one},
                "minus_full": {},
                "minus_base": {},
                "share_of_full": {"accuracy": one},
            }
            panel = {"examples": 9, "models": {"full": paired}}
            found["shifted"] = {"far": panel}
            found["groups"] = {
                "test": {"column": "who", "positive": None, "pooled": [], "groups": {"a": panel}, "gaps": panel}
            }
            metrics[name] = found
    write_csv(chain.root / "reports/few-shot.csv", measures(points, metrics))
    return chain


def test_the_table_has_every_measure_with_the_points_values(swept):
    rows = pd.read_csv(swept.root / "reports/few-shot.csv")
    assert set(rows.panel) == {"test", "far", "gaps on test"}
    full = rows[(rows.model == "full") & (rows.measure == "accuracy")].set_index(
        ["panel", "data.limits.train", "data.seed"]
    )
    for size, draws in DRAWS.items():
        for seed, accuracy in enumerate(draws, 1):
            assert full.value["test", size, seed] == accuracy
            for panel in ("far", "gaps on test"):
                assert full.value[panel, size, seed] == full.share_of_full[panel, size, seed] == accuracy / 2
    assert {"untrained", "majority", "salf"} <= set(rows.model)


def test_the_page_shows_means_over_draws_with_students_intervals(swept, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        quality, "curves", lambda name, _title, _axes, lines, errors: drawn.update({name: (lines, errors)})
    )
    rows = pd.read_csv(swept.root / "reports/few-shot.csv")
    quality.few_section(SimpleNamespace(few=rows))
    assert list(drawn) == ["fig-few-test", "fig-few-far"]
    low, high = t.interval(0.95, 2, loc=np.mean(DRAWS[16]), scale=np.std(DRAWS[16], ddof=1) / np.sqrt(3))
    for (lines, errors), factor in zip(drawn.values(), (1, 0.5), strict=True):
        method, dots = lines["full"]
        assert method == "full"
        assert dict(dots) == pytest.approx({16: factor * np.mean(DRAWS[16]), 64: factor * 0.7})
        assert errors["full"] == pytest.approx([factor * (high - low) / 2, 0])
    monkeypatch.undo()
    main(swept.argv())
    page = swept.page.read_text(encoding="utf-8")
    assert all(f'id="{name}"' in page for name in ("few", "fig-few-test", "fig-few-far"))
    assert (swept.root / "reports/figures/fig-few-far.svg").is_file()


def test_metrics_of_another_kind_are_one_line():
    with pytest.raises(UserError, match="--table: needs the metrics of the stage evaluate"):
        measures({"a-1": {"rate": 1}}, {"a-1": {"score": 0.5}})


def test_no_section_without_a_table(pages):
    assert 'id="few"' not in pages["good"][1]
