"""Datasets of the Hub: what goes wrong on the way to one is one line that says what to do."""

import pytest

from salf.errors import UserError
from stages.prepare.sources import load_rows
from tests.hub_transport import HUB_FAULTS, answering, hub_that
from tests.prepare.making import make_data

# The library's own words for some, which drop what they were made of.
ACCESS = r"accept the terms on https://huggingface\.co/datasets/somebody/thing and log in \(hf auth login"
UNREACHED = r"the hub cannot be reached \(ConnectionError: Couldn't reach.*HF_HUB_OFFLINE=1, or name a local folder"
OWN_WORDS = {
    "gated, not logged in": rf"is a gated dataset on the Hub\..*{ACCESS}",
    "gated, not accepted": rf"is a gated dataset on the Hub\..*{ACCESS}",
    "not found": rf"doesn't exist on the Hub or cannot be accessed\. Correct the name.*{ACCESS}",
    "not found, logged in": r"doesn't exist on the Hub or cannot be accessed\. Correct the name",
    "down": r"An error happened while trying to locate the file on the Hub.*check your connection",
    "no network": UNREACHED,
    "too slow": UNREACHED,
}


def load():
    load_rows(make_data(source="hub", name="somebody/thing", revision="v9"), ("text", "label"))


@pytest.mark.parametrize("what", HUB_FAULTS)
@pytest.mark.usefixtures("hub")
def test_a_fault_of_the_hub_is_one_line_that_says_what_to_do(tmp_path, what):
    answer, told = HUB_FAULTS[what]
    told = OWN_WORDS.get(what, told)
    with (
        hub_that(answer, tmp_path / "cache"),
        pytest.raises(UserError, match=rf"^data\.name = somebody/thing: .*{told}") as raised,
    ):
        load()
    assert "\n" not in str(raised.value)
    assert "Request" not in str(raised.value)


@pytest.mark.usefixtures("hub")
def test_offline_mode_without_a_cached_data_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with (
        hub_that(answering(200), tmp_path / "cache"),
        pytest.raises(UserError, match="not in the hub's cache, and HF_HUB_OFFLINE is set; unset it"),
    ):
        load()
