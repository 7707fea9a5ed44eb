"""Intermediates kept by content: made once, never half."""

import pytest

from haversack.bench import _cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))


def test_equal_inputs_are_made_once_and_other_inputs_anew():
    made = []

    def make(folder):
        made.append(folder)
        (folder / "x").write_text("1")

    first = _cache.cached("thing", {"a": 1, "b": [2]}, make)
    assert _cache.cached("thing", {"b": [2], "a": 1}, make) == first and len(made) == 1
    assert (first / "x").read_text() == "1"
    assert _cache.cached("thing", {"a": 1, "b": [3]}, make) != first and len(made) == 2


def test_a_failed_making_leaves_nothing():
    def fail(folder):
        (folder / "x").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        _cache.cached("thing", {}, fail)
    assert [path.name for path in (_cache.cache_folder() / "bench").iterdir() if path.is_dir()] == []
    assert (_cache.cached("thing", {}, lambda folder: None)).is_dir()
