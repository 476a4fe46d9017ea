"""The lineage: hashes of the files, and a mismatch that is marked and said."""

import html
import json
from collections.abc import Callable

import pytest

from salf.files import sha256_file
from stages.report.__main__ import main
from tests.report.test_page import Reader


def page_of(chain) -> str:
    main(chain.argv())
    return chain.page.read_text(encoding="utf-8")


def rows(text: str) -> list[tuple[str, ...]]:
    return [tuple(cell[0].strip() for cell in row) for row in Reader(text).tables["lineage-links"][1:]]


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
    checked = [row for row in rows(text) if row[1] in files]
    # Two hashes in the plan, one in the trace, and four of each of the eight runs.
    assert len(checked) == 2 + 1 + 4 * 8
    for _, what, recorded, found, verdict in checked:
        assert recorded == found == sha256_file(chain.root / files[what])
        assert verdict == "agrees"
    assert {row[4] for row in rows(text)} == {"agrees"}
    assert "of their inputs agree with the inputs" in html.unescape(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "edit", "source", "said"),
    [
        ("data/models/salf-seed1/run.json", {"plan_sha256": "0" * 64}, "plan: plan", "salf-seed1 was made from"),
        ("reports/scaling_law.json", {"trace_sha256": "1" * 64}, "traces: traces", "scaling_law.json was made from"),
        ("data/base/base.json", {"weights_sha256": "2" * 64}, "base: weights", "freeze_plan.json was made from"),
    ],
)
def test_a_mismatch_is_marked_and_said(chain_of: Callable, path: str, edit: dict, source: str, said: str) -> None:
    chain = chain_of()
    file = chain.root / path
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    text = page_of(chain)
    assert source in {row[1] for row in rows(text) if row[4] == "differs"}
    assert said in html.unescape(text)
    assert "this page mixes runs" in html.unescape(text)


def test_edited_data_is_seen_by_its_own_bytes(chain_of: Callable) -> None:
    """The meta data still says the old hash: what counts is what lies there."""
    chain = chain_of()
    other = (chain.root / "data/prepared/test.parquet").read_bytes()
    (chain.root / "data/prepared/validation.parquet").write_bytes(other)
    text = page_of(chain)
    wrong = [row for row in rows(text) if row[4] == "differs"]
    assert {row[1] for row in wrong} == {"prepared: validation split"}
    assert len(wrong) == 8
    assert "full-seed1 was made from another validation split." in text


def test_a_lost_artifact_is_missing_not_agreed(chain_of: Callable) -> None:
    chain = chain_of()
    (chain.root / "reports/gains.csv").unlink()
    text = page_of(chain)
    assert [row[:2] for row in rows(text) if row[4] == "missing"] == [("freeze_plan.json", "gains: gains")]
    assert "freeze_plan.json was made from another gains." in text
