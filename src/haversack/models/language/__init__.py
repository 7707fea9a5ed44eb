"""Language models: one file a family, found by its name.

A family's file has `read(config)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError, nearest_name
from haversack.models.audio import is_speech
from haversack.models.language._features import refuse_features

if TYPE_CHECKING:
    from haversack.models._architecture import Architecture
    from haversack.models.language._encoder import EncoderArchitecture

ENCODERS = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "xlm_roberta"}
"""`model_type` of an encoder -> its file."""
TEXT_TO_TEXT = ("mt5", "switch_transformers", "t5")
"""`model_type` of an encoder with a decoder, which reads a text and writes another; all other families are
decoders."""


def families() -> tuple[str, ...]:
    """The names of the decoders' families, which are the `model_type`s of their configs."""
    files = (file.stem for file in Path(__file__).parent.glob("*.py"))
    named = (name for name in files if not name.startswith("_") and not name.endswith("_torch"))
    return tuple(sorted(set(named) - set(ENCODERS.values()) - set(TEXT_TO_TEXT)))


def is_text_to_text(config: Mapping[str, Any]) -> bool:
    """True when a hub config describes an encoder with a decoder, which `read_architecture` gives where it
    is asked for with `reader`."""
    family = config.get("model_type")
    return isinstance(family, str) and family in TEXT_TO_TEXT


def is_encoder(config: Mapping[str, Any]) -> bool:
    """True when a hub config describes an encoder, which `read_encoder` reads."""
    family = config.get("model_type")
    return isinstance(family, str) and family in ENCODERS


def read_encoder(config: Mapping[str, Any]) -> EncoderArchitecture:
    """The encoder that a hub config describes (see `is_encoder`). Raises UserError like
    `read_architecture`."""
    module = import_module(f"{__name__}.{ENCODERS[str(config.get('model_type'))]}")
    architecture: EncoderArchitecture = module.read(config)
    return architecture


def read_architecture(config: Mapping[str, Any], *, reader: bool = False) -> Architecture:
    """The architecture that a hub config describes; with `reader` that of an encoder with a decoder, too.

    Raises UserError for a family we do not have (naming the nearest three and what differs), for every field
    that cannot be, and for one that asks for what we do not compute.
    """
    family = config.get("model_type")
    known = families()
    if is_encoder(config):
        raise UserError(
            f"config.json: {family} is an encoder, which reads texts and writes none; this needs a decoder.",
            field="model_type",
            given=family,
        )
    if is_text_to_text(config):
        if not reader:
            raise UserError(
                f"config.json: {family} is an encoder with a decoder, which reads a text and writes another; "
                "this needs a decoder alone.",
                field="model_type",
                given=family,
            )
        refuse_features(config, str(family))
        text_to_text: Architecture = import_module(f"{__name__}.{family}").read(config)
        return text_to_text
    if is_speech(config):
        raise UserError(
            f"config.json: {family} is a speech model, which hears sound (haversack run --audio); this needs "
            "a model that reads text.",
            field="model_type",
            given=family,
        )
    if not isinstance(family, str) or not family:
        listed = config.get("architectures")
        named = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else None
        found = [name for name in known if named and named.lower() == f"{name}forcausallm"]
        if not found:
            raise UserError(
                f"config.json has no model_type; known are {', '.join(known)}.",
                field="model_type",
                given=named,
                nearest=nearest_name(named.removesuffix("ForCausalLM"), known) if named else None,
            )
        family = found[0]
    if family not in known:
        from haversack.models.language._nearest import unknown_family

        raise unknown_family(family, config, known)
    refuse_features(config, family)
    architecture: Architecture = import_module(f"{__name__}.{family}").read(config)
    return architecture
