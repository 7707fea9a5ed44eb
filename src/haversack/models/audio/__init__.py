"""Speech models: one file a family, found by the `model_type` of its config; their front ends."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from haversack.core.errors import unknown_name

if TYPE_CHECKING:
    from haversack.models.audio._record import SpeechArchitecture

SPEECH = ("moonshine", "whisper")
"""`model_type` of a speech model, which is the name of its file."""


def is_speech(config: Mapping[str, Any]) -> bool:
    """True when a hub config describes a speech model, which `read_speech` reads."""
    family = config.get("model_type")
    return isinstance(family, str) and family in SPEECH


def read_speech(config: Mapping[str, Any]) -> SpeechArchitecture:
    """The speech model that a hub config describes.

    Raises UserError for another family, for every field that cannot be, and for one that asks for what is not
    computed.
    """
    if not is_speech(config):
        raise unknown_name(
            "config.json: model_type", str(config.get("model_type"))[:80], SPEECH, field="model_type"
        )
    module = import_module(f"{__name__}.{config['model_type']}")
    architecture: SpeechArchitecture = module.read(config)
    return architecture
