"""The lineage graph: hashes that sha256sum agrees with, and a mismatch that is drawn and said."""

import html
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.report.__main__ import main
from tests.report.test_page import Reader

SVG = "{http://www.w3.org/2000/svg}"


def page_of(chain) -> str:
    main(chain.argv())
    return chain.page.read_text(encoding="utf-8")


def figure(text: str) -> ET.Element:
    found = re.search(r'<svg [^>]*id="lineage-graph".*?</svg>', text, flags=re.DOTALL)
    return ET.fromstring(found.group(0))


def drawn(text: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in figure(text).iter(f"{SVG}text")]


def described(text: str) -> str:
    return figure(text).find(f"{SVG}desc").text


def rows(text: str) -> list[tuple[str, ...]]:
    return [tuple(cell[0].strip() for cell in row) for row in Reader(text).tables["lineage-links"][1:]]


def sha256sum(path: Path) -> str:
    return subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout.split()[0]


def test_every_recorded_hash_is_that_of_the_file_it_points_to(pages: dict) -> None:
    chain, text = pages["good"]
    files = {
        "law: scaling law": "reports/scaling_law.json",
        "gains: gains": "reports/gains.csv",
        "plan: plan": "data/plan/freeze_plan.json",
        "prepared: train split": "data/prepared/train.parquet",
        "prepared: test split": "data/prepared/test.parquet",
        "prepared: validation split": "data/prepared/validation.parquet",
    }
    checked = [row for row in rows(text) if row[1] in files and row[4] != "no hash kept"]
    # Two hashes in the plan, one in the trace, and four of each of the eight runs.
    assert len(checked) == 2 + 1 + 4 * 8
    for _, what, recorded, found, verdict in checked:
        assert recorded == found == sha256sum(chain.root / files[what])
        assert verdict == "agrees"
    assert {row[4] for row in rows(text)} == {"agrees", "no hash kept"}
    assert "of their inputs agree with the inputs" in html.unescape(text)


def test_the_boxes_carry_the_hashes_and_the_runs(pages: dict) -> None:
    chain, text = pages["good"]
    texts = drawn(text)
    for path in ("reports/scaling_law.json", "reports/gains.csv", "data/plan/freeze_plan.json", "reports/metrics.json"):
        assert sha256sum(chain.root / path)[:8] in texts
    assert {"base model", "prepared data", "traces", "freeze plan", "salf+lora-seed2"} <= set(texts)
    assert "≠" not in texts
    assert "traces keeps the hash of base" in described(text)
    assert "metrics keeps no hash of models" in described(text)
    assert "was made from another" not in described(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "edit", "arrow", "said"),
    [
        (
            "data/models/salf-seed1/run.json",
            {"plan_sha256": "0" * 64},
            "models was made from another plan",
            "salf-seed1 was made from plan 00000000",
        ),
        (
            "reports/scaling_law.json",
            {"trace_sha256": "1" * 64},
            "law was made from another traces",
            "scaling_law.json was made from traces 11111111",
        ),
        ("data/base/base.json", {"weights_sha256": "2" * 64}, "plan was made from another base", "present is 22222222"),
    ],
)
def test_a_mismatch_is_drawn_and_said(chain_of: Callable, path: str, edit: dict, arrow: str, said: str) -> None:
    chain = chain_of()
    file = chain.root / path
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    text = page_of(chain)
    assert "≠" in drawn(text)
    assert arrow in described(text)
    assert said in html.unescape(text)
    assert "differs" in {row[4] for row in rows(text)}


def test_edited_data_is_seen_by_its_own_bytes(chain_of: Callable) -> None:
    """The meta data still says the old hash: what counts is what lies there."""
    chain = chain_of()
    other = (chain.root / "data/prepared/test.parquet").read_bytes()
    (chain.root / "data/prepared/validation.parquet").write_bytes(other)
    text = page_of(chain)
    wrong = [row for row in rows(text) if row[4] == "differs"]
    assert {row[1] for row in wrong} == {"prepared: validation split"}
    assert len(wrong) == 8
    assert "≠ full-seed1" in drawn(text)


def test_a_lost_artifact_is_missing_not_agreed(chain_of: Callable) -> None:
    chain = chain_of()
    (chain.root / "reports/gains.csv").unlink()
    text = page_of(chain)
    assert [row[:2] for row in rows(text) if row[4] == "not there to compare"] == [("freeze_plan.json", "gains: gains")]
    assert "present is –" in html.unescape(text)


def test_before_any_run_the_graph_ends_at_the_plan(pages: dict) -> None:
    texts = drawn(pages["no-runs"][1])
    assert "freeze plan" in texts
    assert "fine-tuned models" not in texts
    assert "metrics" not in texts
