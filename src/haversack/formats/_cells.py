"""Cells of text tables, as Python reads numbers."""

from __future__ import annotations

import re

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")


def plain_cell(text: str, mark: str) -> str:
    """A cell without blanks around it; where commas do not part the cells (`mark` does), a number's comma is
    its decimal point."""
    text = text.strip()
    return text.replace(",", ".") if mark != "," and _DECIMAL_COMMA.fullmatch(text) else text
