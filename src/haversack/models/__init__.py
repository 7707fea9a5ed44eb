"""Architectures by modality, tokenizers and the texts that compression looks at; torch-free unless a file
ends in
`_torch`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Architecture": "_architecture",
    "Attention": "_architecture",
    "Block": "_architecture",
    "Branch": "_architecture",
    "FeedForward": "_architecture",
    "Linear": "_architecture",
    "Norm": "_architecture",
    "Positions": "_architecture",
    "Rope": "_rope",
    "Tokenizer": "_tokenizer",
    "read_architecture": "language",
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
