import json
import struct

import pytest

from haversack.core.pack import PackWriter


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pack(tmp_path):
    """A small whole pack with two tensors and a tokenizer."""
    with PackWriter(tmp_path / "whole.pack") as writer:
        writer.add_tensor("first", "f32", (5, 7), [struct.pack("<35f", *range(35))])
        writer.add_tensor("second", "int4", (16, 32), [bytes(range(256)) + bytes(32)], 32, "rows16-1")
        writer.add_file("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0}}}).encode())
        writer.finish({"plan": {"precision": "gptq"}, "provenance": {"source": "a test"}})
    return tmp_path / "whole.pack"
