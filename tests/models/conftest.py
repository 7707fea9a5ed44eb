"""Checkpoint folders drawn from a seed, in memory and on disk."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.memory_source import MemorySource
from tests.models.parity import recorded


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def record() -> ModuleType:
    """The script that made the recordings: its cases and how weights and prompts are drawn."""
    return _load("record")


@pytest.fixture(scope="session")
def memory_source() -> type[MemorySource]:
    return MemorySource


@pytest.fixture(scope="session")
def drawn(record: Any) -> Any:
    """A case's weights and prompt, drawn once."""
    kept: dict[str, Any] = {}

    def draw(name: str) -> Any:
        if name not in kept:
            config, stored = recorded(record, name)
            prompt = record.draw_prompt(name, record.CASES[name][1])
            kept[name] = (config, record.weights_of(name), prompt, stored)
        return kept[name]

    return draw
