"""mT5 (Xue et al., 2021): T5 1.1 in 101 languages, with a larger vocabulary.

The output matrix is one of its own, as in T5 1.1, unless `tie_word_embeddings`; states before it are never
scaled. mT5: A massively multilingual pre-trained text-to-text transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import Architecture
from haversack.models._config import Config
from haversack.models.language._text_to_text import dense, read_sizes, text_to_text
from haversack.models.language.t5 import read_feed_forward

CLASSES = ("MT5ForConditionalGeneration", "MT5Model")


def read(values: Mapping[str, Any]) -> Architecture:
    """The architecture of an mT5 config. Raises UserError for a field that cannot be."""
    config = Config(values)
    sizes = read_sizes(config, CLASSES)
    activation, gated = read_feed_forward(config)

    def feed(side: str, index: int, module: str) -> Any:
        return dense(sizes, f"{module}.DenseReluDense", activation, gated)

    tied = config.flag("tie_word_embeddings", False)
    return text_to_text("mt5", config, sizes, feed, tied=tied, scaled=False)
