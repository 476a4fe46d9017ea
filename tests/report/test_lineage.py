"""The lineage: hashes of the files, and a mismatch that is said."""

import html
import json
from collections.abc import Callable

import pytest

from stages.report.__main__ import main


def page_of(chain) -> str:
    main(chain.argv())
    return html.unescape(chain.page.read_text(encoding="utf-8"))


def test_every_recorded_hash_is_that_of_the_file_it_points_to(pages: dict) -> None:
    # Weights and train split in the trace, traces in the law, weights, law and gains in the plan, and five of each run.
    assert f"All {2 + 1 + 3 + 5 * 8} hashes that artifacts keep of their inputs agree" in html.unescape(
        pages["good"][1]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "edit", "said"),
    [
        ("data/models/salf-seed1/run.json", {"plan_sha256": "0" * 64}, "salf-seed1 was made from another plan."),
        ("reports/scaling_law.json", {"trace_sha256": "1" * 64}, "scaling_law.json was made from another traces."),
        ("data/base/base.json", {"weights_sha256": "2" * 64}, "freeze_plan.json was made from another weights."),
    ],
)
def test_a_mismatch_is_said(chain_of: Callable, path: str, edit: dict, said: str) -> None:
    chain = chain_of()
    file = chain.root / path
    file.write_text(json.dumps({**json.loads(file.read_text()), **edit}))
    text = page_of(chain)
    assert said in text
    assert "this page mixes runs" in text


def test_edited_data_is_seen_by_its_own_bytes(chain_of: Callable) -> None:
    """The meta data still says the old hash: what counts is what lies there."""
    chain = chain_of()
    other = (chain.root / "data/prepared/test.parquet").read_bytes()
    (chain.root / "data/prepared/validation.parquet").write_bytes(other)
    text = page_of(chain)
    assert text.count("was made from another") == text.count("was made from another validation split.") == 8
    assert "full-seed1 was made from another validation split." in text


def test_a_lost_artifact_is_said(chain_of: Callable) -> None:
    chain = chain_of()
    (chain.root / "reports/gains.csv").unlink()
    assert "freeze_plan.json was made from another gains." in page_of(chain)
