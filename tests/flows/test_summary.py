import re

from flows.graph import StageNode
from flows.stage_run import Outcome, StageRun
from flows.summary import artifact_key, counts_line, metric_rows, stage_rows

GRAPH = [StageNode(name, f"does {name}") for name in ("base", "trace", "fit")]


def test_every_stage_has_a_row_also_when_the_run_stopped_early():
    rows = stage_rows(GRAPH, [StageRun("base", Outcome.RESTORED, 2.0)], failed="trace")
    assert [(row["stage"], row["outcome"], row["took"]) for row in rows] == [
        ("base", "restored", "2 s"),
        ("trace", "failed", ""),
        ("fit", "not reached", ""),
    ]
    assert rows[2]["what it does"] == "does fit"


def test_the_counts_add_up_to_the_stages():
    runs = [StageRun("a", Outcome.RAN, 60), StageRun("b", Outcome.CACHED, 1), StageRun("c", Outcome.RAN, 62)]
    line = counts_line(runs)
    assert line == "2 ran, 1 cached in 2.05 min"
    assert sum(int(n) for n in re.findall(r"(\d+) (?:ran|cached|restored)", line)) == len(runs)


def test_a_run_without_work_says_that_nothing_had_to_be_done():
    assert counts_line([StageRun("a", Outcome.CACHED, 1)]).startswith("nothing had to be done: all 1 stages")


def test_metrics_are_flattened_and_lists_left_out():
    rows = metric_rows({"runs": {"full-seed1": {"accuracy": 0.123456789, "n": 240}}, "curve": [1, 2]})
    assert rows == [
        {"metric": "runs.full-seed1.accuracy", "value": "0.123457"},
        {"metric": "runs.full-seed1.n", "value": "240"},
    ]


def test_artifact_keys_are_what_prefect_accepts():
    keys = {artifact_key("metrics", "finetune@salf+lora-1"), artifact_key("metrics", "finetune@salf-lora-1")}
    assert len(keys) == 2
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key) for key in keys)
