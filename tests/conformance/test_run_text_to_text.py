"""Run methods on an encoder with a decoder: the plain tokens, or a refusal by declaration."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.run.test_text_to_text import READ, write_pack
from tests.run.text_to_text import SWITCH

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.index import MethodEntry
from haversack.run import Engine, Limits, generate
from haversack.run._slots import GIVEN, NAMES

ENTRIES = [entry for entry in index.methods("run") if entry.slot in NAMES]
HELD = {*GIVEN, "expert-store:experts", "encoder-decoder"}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("switch") / "switch.pack", SWITCH)


def tokens_of(pack: Path, **slots: str) -> list[int]:
    with Engine.open(pack, **slots) as engine:
        answer = generate(engine, READ, Limits(max_tokens=12, end=()))
        return [token.id for token in answer if token.id is not None]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.slot}-{entry.name}")
def test_the_plain_tokens_or_a_refusal(entry: MethodEntry, pack: Path) -> None:
    slots = {entry.slot: entry.name}
    if any(parameter.name == "draft" for parameter in entry.parameters):
        slots["draft"] = "code-draft"
    if index.conflicts([entry], HELD):
        with pytest.raises(UserError):
            tokens_of(pack, **slots)
        return
    assert tokens_of(pack, **slots) == tokens_of(pack, residency="mapped")


def test_what_is_made_for_decoders_says_so() -> None:
    """Every way to attend, read or draft but the plain ones, and stores of another kind."""
    refused = {entry.name for entry in ENTRIES if "encoder-decoder" in entry.excludes}
    assert refused >= {"sliding", "dhsa", "chunked", "chunked:shadow", "linear-draft", "tree", "remote"}
    assert not refused & {"dense", "whole", "one-by-one", "mapped", "copied", "streamed", "streamed:edgemoe"}
