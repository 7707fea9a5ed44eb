"""Torch-free engines: what runs a pack or a checkpoint folder, and the methods that fill the slots of a
run.
"""

from __future__ import annotations

from haversack.core._names import lazily

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

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
