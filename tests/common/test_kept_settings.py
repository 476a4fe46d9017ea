"""What was kept under other settings and still counts."""

import pytest

from stages.common.kept_settings import still_holds


def test_a_parameter_that_came_later_leaves_results_as_they_were():
    kept = {"finetune": {"epochs": 3}, "content": {"a": "1"}}
    assert still_holds(kept, {"finetune": {"epochs": 3, "new": True}, "content": {"a": "1"}, "more": {}})
    assert not still_holds(kept, {"finetune": {"epochs": 4}, "content": {"a": "1"}})
    assert not still_holds(kept, {"finetune": {}, "content": {"a": "1"}})
    assert not still_holds(kept, {"finetune": {"epochs": 3}, "content": None})


@pytest.mark.parametrize(("kept", "now", "holds"), [(True, "all", True), (False, "none", True), (True, "train", False)])
def test_the_old_spelling_of_balance_holds_under_the_new_one(kept, now, holds):
    assert still_holds({"data": {"balance": kept}}, {"data": {"balance": now}}) == holds
