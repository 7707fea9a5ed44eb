"""The 58 systems: complete facts, and a state that is computed from what is there."""

from __future__ import annotations

import re
from typing import Any

from haversack.bench import stored_result
from haversack.core.index import PACKAGE
from haversack.core.systems import (
    NOT_MEASURED,
    STATES,
    Evidence,
    evidence,
    files_of_systems,
    page_of,
    systems,
)


def result(**changes: Any) -> dict[str, Any]:
    row = {"id": "speed", "holds": True, "bar": {}, "note": "", "ratio": 1.5, "ours": {}, "source": "stored"}
    return {"mode": "full", "rows": [{**row, "id": "size", "ratio": None}, {**row, **changes}]}


def test_all_58_with_every_fact() -> None:
    entries = systems()
    assert [entry.number for entry in entries] == list(range(1, 59))
    assert len({entry.slug for entry in entries}) == 58
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.slug)
        assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.arxiv) or entry.slug == "yolo26", entry
        assert entry.title and entry.room and entry.command and entry.published


def test_nothing_is_absent() -> None:
    proof = Evidence((), None)
    assert (proof.state, proof.ratio) == ("absent", None)


def test_something_is_partial() -> None:
    assert Evidence(("run/x.py",), None).state == "partial"
    assert Evidence((), "bench/x.py").state == "partial"
    assert Evidence(("run/x.py",), "bench/x.py").missing == ("no stored full result",)


def test_all_of_it_works() -> None:
    proof = Evidence(("run/x.py",), "bench/x.py", (), result())
    assert (proof.state, proof.missing, proof.ratio) == ("works", (), 1.5)


def test_a_bar_that_cannot_be_judged_needs_its_reason() -> None:
    def state(**changes: Any) -> str:
        return Evidence(("run/x.py",), "bench/x.py", (), result(**changes)).state

    assert state(holds=None, note="no network") == "works"
    assert state(holds=None, ours=None, bar=None, note=NOT_MEASURED) == "partial"
    assert state(holds=None) == "partial"
    assert state(holds=None, bar=None) == "works"  # a row without a bar only informs
    assert state(holds=False, note="slower here") == "partial"
    assert state(source="stale") == "partial"
    document = {**result(), "mode": "quick"}
    assert Evidence(("run/x.py",), "bench/x.py", (), document).state == "partial"
    assert Evidence(("run/x.py",), "bench/x.py", ("docs/methods/run/x.md",), result()).state == "partial"


def test_states_come_from_the_tree() -> None:
    """Whatever the tree holds today: a system without a file and without a bench is absent, and only such."""
    declared = files_of_systems()
    assert set(declared) <= set(range(1, 59))
    for system in systems():
        proof = evidence(system, stored_result(system.slug))
        stem = system.slug.replace("-", "_")
        anything = bool(declared.get(system.number)) or any((PACKAGE / "bench").glob(f"{stem}*"))
        assert proof.state in STATES
        assert (proof.state == "absent") == (not anything), system
        if proof.state == "works":
            assert proof.result is not None
            assert all(row["holds"] is not False for row in proof.result["rows"])


def test_a_file_s_page() -> None:
    assert page_of("shrink/precision/round_to_nearest.py") == "docs/methods/shrink/round-to-nearest.md"
    assert page_of("sense/heart_rate.py") == "docs/methods/sense/heart-rate.md"
