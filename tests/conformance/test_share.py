"""What every method of stage share owes besides its declaration: its system, its slot."""

from __future__ import annotations

import pytest

from haversack.core import index
from haversack.core.index import MethodEntry

METHODS = [entry for entry in index.methods() if entry.stage == "share"]


@pytest.mark.parametrize("entry", METHODS, ids=lambda entry: entry.name)
def test_it_belongs_to_a_system(entry: MethodEntry) -> None:
    assert entry.system is not None and entry.slot == "cut"
