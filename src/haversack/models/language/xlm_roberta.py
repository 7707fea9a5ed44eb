"""XLM-RoBERTa (Conneau et al., 2019): RoBERTa with a vocabulary of 250 thousand tokens in a hundred
languages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models.language._encoder import EncoderArchitecture, Family, read_encoder
from haversack.models.language.roberta import heads

SYSTEM = 21
FAMILY = Family("xlm-roberta", "XLMRoberta", "roberta", padding=1, skips_padding=True)


def read(values: Mapping[str, Any]) -> EncoderArchitecture:
    """The architecture of an XLM-R config. Raises UserError for a field that cannot be."""
    return read_encoder(FAMILY, values, heads)
