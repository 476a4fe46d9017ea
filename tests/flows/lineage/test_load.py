"""Reading stays linear in the ledger's records: what is done is counted, not timed (times: stages/bench/ledger.py)."""

from collections import Counter

import pytest

from flows.lineage import known, ledger
from salf.ledger import LEDGER
from stages.bench.ledger import newest_result, write_ledger


@pytest.mark.parametrize("command", ["show", "verify"])
def test_ten_times_the_records_are_ten_times_the_work(ran, lineage, monkeypatch, command):
    counts = Counter()

    def counting(module, name: str, found) -> None:
        def counted(*arguments):
            counts[name] += 1
            return found(*arguments)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((ledger, "parse"), (ledger, "digests"), (known, "folder_name")):
        counting(module, name, getattr(module, name))
    work = {}
    for records in (300, 3000):
        counts.clear()
        write_ledger(ran.root / LEDGER, records)
        answer = lineage(ran, command, *([newest_result(records)] if command == "show" else []))
        assert not answer.err
        work[records] = dict(counts)
    assert work[300]["parse"] >= 300
    assert work[300].keys() == work[3000].keys()
    assert ("folder_name" in work[300]) == (command == "show")
    for name, times in work[3000].items():
        assert times <= 12 * work[300][name], (name, work)
