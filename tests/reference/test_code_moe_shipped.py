"""`code-moe`: what ships, what its card says, that it completes code and its routers use every expert."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from haversack.formats.safetensors import HubFolder
from haversack.models import Tokenizer, read_architecture
from haversack.models._bundled import model_folder
from haversack.models._calibration import default_text
from haversack.models._evaluation import bits_per_byte
from haversack.run import Engine
from haversack.run._routing import RoutingTrace

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 34_000_000


@pytest.fixture
def folder() -> Path:
    return model_folder("code-moe")


@pytest.fixture
def card(folder: Path) -> str:
    return (folder / "CARD.md").read_text(encoding="utf-8")


def test_it_is_a_mixture_of_the_declared_size(folder: Path, card: str) -> None:
    source = HubFolder.open(folder)
    architecture = read_architecture(source.config)
    stored = {name: tuple(entry.shape) for name, entry in source.tensors.items()}
    assert stored == architecture.checkpoint_tensors()
    assert {entry.kind for entry in source.tensors.values()} == {"f16"}
    mixtures = [block.mixture for block in architecture.blocks]
    assert len(mixtures) >= 4
    for mixture in mixtures:
        assert mixture is not None and len(mixture.experts) >= 8 and mixture.tap == "residual"
    parameters = sum(math.prod(shape) for shape in stored.values())
    assert 14_000_000 <= parameters <= 17_000_000
    assert f"Parameters: {parameters:,}" in card
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES


def test_windows_and_positions_alternate_as_the_paper_has_them(folder: Path) -> None:
    attentions = [block.attention for block in read_architecture(HubFolder.open(folder).config).blocks]
    assert [attention is not None and attention.rope is None for attention in attentions] == [True] + [
        False
    ] * 3
    windows = [attention.window for attention in attentions if attention is not None]
    assert windows == [None, 512, 512, 512]


def test_tokenizer_is_that_of_code(folder: Path) -> None:
    theirs = model_folder("code")
    assert (folder / "tokenizer.json").read_bytes() == (theirs / "tokenizer.json").read_bytes()
    config, other = (json.loads((place / "config.json").read_text()) for place in (folder, theirs))
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "max_position_embeddings"):
        assert config[name] == other[name], name


def test_licence_and_origin_stand_beside_it(folder: Path, card: str) -> None:
    assert "Weights: Apache-2.0" in card and "Python Software Foundation" in card
    for notice in (ROOT / "NOTICE", folder.parent / "NOTICE"):
        assert "`code-moe`" in notice.read_text(encoding="utf-8")


def test_its_loss_on_held_out_text_is_the_cards(folder: Path, card: str) -> None:
    """On a part of the packages that the card's number is of, so within a tenth of it."""
    said = re.search(r"Held-out: (\d\.\d+) bits a byte", card)
    assert said is not None
    text = default_text("evaluation")[:24_000]
    tokens = np.asarray(Tokenizer.of_folder(folder).encode(text), np.int32)
    with Engine.open(folder) as engine:
        found = bits_per_byte(engine, tokens, len(text.encode()))
    assert found == pytest.approx(float(said[1]), rel=0.15)


def test_its_routers_use_all_experts_and_no_token_the_same(folder: Path) -> None:
    tokens = np.asarray(Tokenizer.of_folder(folder).encode(default_text("evaluation")[:12_000]), np.int32)
    with Engine.open(folder) as engine:
        trace = RoutingTrace()
        engine.observe(trace)
        engine.step(tokens[:2000], cache=engine.cache(2000), want="none")
    assert trace.blocks == [0, 1, 2, 3]
    for block in trace.blocks:
        counts = trace.counts(block, 16)
        assert counts.min() > 0 and counts.max() < counts.sum() / 3, block


@pytest.mark.parametrize(
    ("prompt", "next_piece"),
    [
        ("try:\n    import json\nexcept Import", "Error:"),
        ("class Reader:\n    def __init__(self, path):\n        self.path =", " path"),
        ("for i in range(10):\n    if i ==", " "),
    ],
)
def test_it_completes_code(prompt: str, next_piece: str, folder: Path) -> None:
    tokenizer = Tokenizer.of_folder(folder)
    tokens = [0, *tokenizer.encode(prompt)]
    with Engine.open(folder) as engine:
        cache = engine.cache(len(tokens) + 4)
        made: list[int] = []
        for _ in range(4):
            logits, _ = engine.step(tokens, cache=cache)
            assert logits is not None
            tokens = [int(logits[-1].argmax())]
            made += tokens
    assert tokenizer.decode(made).startswith(next_piece)
