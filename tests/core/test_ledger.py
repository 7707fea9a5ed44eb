import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.ledger import COUNTERS, Ledger

ADDING = """
import sys
from haversack.core.budget import Budget, BudgetError
from haversack.core.ledger import Ledger
ledger = Ledger(sys.argv[1])
for i in range(100):
    ledger.add("uplink_bytes", 1024, key=f"shared {i}")
    ledger.add("energy_mj", 1)
    try:
        ledger.spend(Budget(cost_usd=1.0), "cost_usd", 0.015625)
    except BudgetError:
        pass
"""


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(COUNTERS), st.floats(0, 1e9), st.text(max_size=3)), max_size=20))
def test_a_file_gives_the_totals_of_memory(tmp_path_factory, spent):
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    kept, noted = Ledger(), Ledger(path)
    for counter, amount, key in spent:
        assert kept.add(counter, amount, "work", key) == noted.add(counter, amount, "work", key)
    again = Ledger(path)
    for counter in COUNTERS:
        assert kept.total(counter) == noted.total(counter) == again.total(counter)
    assert [e.key for e in again.entries] == [e.key for e in kept.entries]


def test_processes_share_a_file_exactly_once_and_never_over_budget(tmp_path):
    path = tmp_path / "ledger"
    running = [subprocess.Popen([sys.executable, "-c", ADDING, path]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    ledger = Ledger(path)
    assert ledger.total("uplink_bytes") == 100 * 1024, "a key counts once"
    assert ledger.total("energy_mj") == 300
    assert ledger.total("cost_usd") == 1.0, "64 of 300 fit, and not one more"
    assert ledger.demand() == {"uplink_kib": 100, "energy_mj": 300, "cost_usd": 1.0}


def test_a_line_cut_short_at_any_byte_is_mended(tmp_path):
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.add("energy_mj", 1, "first")
    whole = path.stat().st_size
    ledger.add("energy_mj", 2, "second")
    data = path.read_bytes()
    for cut in range(whole, len(data)):
        path.write_bytes(data[:cut])
        again = Ledger(path)
        assert again.total("energy_mj") == 1
        again.add("energy_mj", 4, "third")
        assert Ledger(path).total("energy_mj") == 5


def test_an_altered_entry_is_refused(tmp_path):
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.add("energy_mj", 1)
    ledger.add("energy_mj", 2)
    data = path.read_bytes()
    for at in range(0, data.index(b"\n"), 3):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DamagedFileError, match="altered"):
            Ledger(path)


def test_spending_beyond_the_budget_counts_nothing():
    ledger = Ledger()
    budget = Budget(uplink_kib=2)
    assert ledger.spend(budget, "uplink_bytes", 2048)
    with pytest.raises(BudgetError, match="uplink_kib is 2 KiB and needs at least"):
        ledger.spend(budget, "uplink_bytes", 1, "one byte more")
    assert ledger.total("uplink_bytes") == 2048


@pytest.mark.parametrize(
    ("counter", "amount"), [("bytes", 1), ("energy_mj", -1), ("energy_mj", float("nan"))]
)
def test_impossible_entries_are_refused(counter, amount):
    with pytest.raises(UserError):
        Ledger().add(counter, amount)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UserError, match="ledger cannot be opened"):
        Ledger(tmp_path / "absent" / "ledger").add("energy_mj", 1)
    assert os.listdir(tmp_path) == []  # noqa: PTH208
