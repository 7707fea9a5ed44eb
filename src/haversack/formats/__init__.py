"""One reader or writer per file format."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Public name -> the file that holds it.
_PUBLIC = {
    "HubFolder": "safetensors",
    "SafetensorsFile": "safetensors",
    "write_safetensors": "safetensors",
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
