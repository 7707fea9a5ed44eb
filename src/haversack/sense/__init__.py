"""Signals and images understood without a big model."""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "Config": "_pipeline_space",
    "EcgStream": "_ecg_stream",
    "Pipeline": "_pipeline_run",
    "PipelinedSession": "pipeline",
    "Policy": "_pipeline_policy",
    "Reading": "ecg",
    "read_ecg": "ecg",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
