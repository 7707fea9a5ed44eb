"""Signals and images understood without a big model."""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "EcgStream": "_ecg_stream",
    "Reading": "ecg",
    "read_ecg": "ecg",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
