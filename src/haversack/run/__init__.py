"""Torch-free engines: what runs a pack or a checkpoint folder, and the methods that fill the slots of a
run.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Cache": "_cache",
    "Conversation": "_conversation",
    "Engine": "_engine",
    "Forward": "_forward",
    "Limits": "_generate",
    "Sampler": "_sampler",
    "embed": "_embed",
    "generate": "_generate",
    "json_schema": "_constraint",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
