"""T5 (Raffel et al., 2020), T5 1.1 and FLAN-T5: an encoder that reads a text and a decoder that writes one.

`feed_forward_proj` names the activation, and whether a gate multiplies it. The first version's output matrix
is its embedding, whose input is scaled; the later ones' is one of its own (`tie_word_embeddings` false).
Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models.language._shape import GATES
from haversack.models.language._text_to_text import dense, read_sizes, text_to_text

CLASSES = ("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel")


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of a T5 config. Raises UserError for a field that cannot be."""
    config = Config(values)
    sizes = read_sizes(config, CLASSES)
    activation, gated = read_feed_forward(config)
    tied = config.flag("scale_decoder_outputs", config.flag("tie_word_embeddings", True))

    def feed(side: str, index: int, module: str) -> Any:
        return dense(sizes, f"{module}.DenseReluDense", activation, gated)

    return text_to_text("t5", config, sizes, feed, tied=tied, scaled=tied)


def read_feed_forward(config: Config) -> tuple[str, bool]:
    """The activation of `feed_forward_proj`, and whether there is a gate; the gate of gated-gelu is the one
    by tanh.
    """
    gated = {f"gated-{name}": f"gated-{kind}" for name, kind in GATES.items()}
    allowed = {**GATES, **gated, "gated-gelu": "gated-gelu-tanh"}
    said = config.choice("feed_forward_proj", "relu", allowed)
    return said.removeprefix("gated-"), said.startswith("gated-")
