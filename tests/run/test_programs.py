"""A block as one native call has the bits of its layers, and what it does not know goes through them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import RECORD, quantized

from haversack import kernels
from haversack.kernels import CacheLayer, Matrix
from haversack.kernels._native import native
from haversack.models import read_architecture
from haversack.models._architecture import Architecture, Attention, Block, Branch, FeedForward, Linear, Norm
from haversack.models._rope import Rope
from haversack.run import Engine
from haversack.run._forward import Forward
from haversack.run._program import _lead, _understood
from haversack.run._step import Step
from haversack.run._weights import Steady
from haversack.run.attention.sliding import Sliding

pytestmark = pytest.mark.skipif(native() is None, reason="programs are native")

WIDTH, HEADS, KEY_HEADS, HEAD = 64, 4, 2, 16


def rms(name: str, width: int = WIDTH, offset: float = 0.0) -> Norm:
    return Norm(f"{name}.weight", width, 1e-5, "rms", offset)


def layered(name: str) -> Norm:
    return Norm(f"{name}.weight", WIDTH, 1e-5, "layer", 0.0, f"{name}.bias")


def attention(bias: bool = False, **changes: Any) -> Attention:
    query, keys = HEADS * HEAD, KEY_HEADS * HEAD
    return replace(
        Attention(
            HEADS,
            KEY_HEADS,
            HEAD,
            0.3,
            Linear.named("q", WIDTH, query, bias),
            Linear.named("k", WIDTH, keys, bias),
            Linear.named("v", WIDTH, keys, bias),
            Linear.named("o", query, WIDTH, bias),
            rope=Rope(HEAD, 10000.0),
        ),
        **changes,
    )


def feed_forward(activation: str = "silu", gated: bool = True, bias: bool = False) -> FeedForward:
    gate = Linear.named("gate", WIDTH, 96, bias) if gated else None
    up, down = Linear.named("up", WIDTH, 96, bias), Linear.named("down", 96, WIDTH, bias)
    return FeedForward(96, activation, gate, up, down)


BLOCKS = {
    "plain": Block(0, (Branch(attention(), rms("one")), Branch(feed_forward(), rms("two")))),
    "biases": Block(
        0,
        (Branch(attention(True), layered("one")), Branch(feed_forward("gelu", False, True), layered("two"))),
    ),
    "head norms": Block(
        0,
        (
            Branch(attention(query_norm=rms("qn", HEAD), key_norm=rms("kn", HEAD), rope=None), rms("one")),
            Branch(feed_forward("relu"), rms("two", offset=1.0)),
        ),
    ),
    "parallel": Block(
        0,
        (
            Branch(attention(True), layered("one")),
            Branch(feed_forward("gelu-tanh", False, True), layered("one")),
        ),
        parallel=True,
    ),
    "norms after": Block(
        0,
        (
            Branch(attention(window=5, softcap=3.0), rms("one"), rms("post1"), rms("after1")),
            Branch(feed_forward(), None, rms("post2"), layered("after2")),
        ),
    ),
    "no attention": Block(0, (Branch(feed_forward(bias=True), rms("two")),)),
}


def weights_of(block: Block, kind: str) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {}
    for name, shape in block.tensors().items():
        values = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        if len(shape) == 1:
            found[name] = values + np.float32(1)
        elif kind == "mixed":  # products of one input that do not take one type of it
            found[name] = Matrix.from_array(values) if name.startswith("k") else quantized(values, "int4")
        else:
            found[name] = Matrix.from_array(values, kind) if kind[0] != "i" else quantized(values, kind)
    return found


def architecture(block: Block) -> Architecture:
    head = Linear("head", WIDTH, 20)
    return Architecture("test", 20, WIDTH, 100, "embedding", (block,), rms("last"), head)


def steps(forward: Forward, block: Block, weights: Any, cache_type: str) -> list[np.ndarray]:
    """A prompt of 9 tokens, two single ones, and a tree of 4."""
    rng = np.random.default_rng(4)
    layer = CacheLayer.empty(KEY_HEADS, 32, HEAD, cache_type)
    tree = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], bool)
    found = []
    for start, places, mask in (
        (0, range(9), None),
        (9, [9], None),
        (10, [10], None),
        (11, [11, 12, 12, 13], tree),
    ):
        hidden = rng.standard_normal((len(places), WIDTH)).astype(np.float32)
        step = Step(
            np.array(places, np.int32), start, mask, None if mask is None else np.arange(11, dtype=np.int32)
        )
        forward.advance(block, hidden, step, layer, weights)
        found.append(hidden)
    return found


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("kind", ["f32", "bf16", "int8", "int4", "int3", "mixed"])
@pytest.mark.parametrize("name", BLOCKS)
def test_one_call_has_the_bits_of_the_layers(name: str, kind: str, cache_type: str) -> None:
    block, weights = BLOCKS[name], weights_of(BLOCKS[name], kind)
    for method in (None, Sliding(window=6, sink=1)):
        forward = Forward(architecture(block), activations="int8-dynamic", attention=method)
        steady = Steady(weights)
        at_once = steps(forward, block, steady, cache_type)
        assert len(steady.programs) == 1
        for one, other in zip(at_once, steps(forward, block, weights, cache_type), strict=True):
            assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


def test_every_family_runs_as_programs() -> None:
    """All but those whose heads have layer norms, which no native call does on its way; of blocks with a
    mixture of experts what comes before it."""
    for name, (config, _) in RECORD.CASES.items():
        blocks = read_architecture(config).blocks
        attentions = [block.attention for block in blocks if block.attention is not None]
        norms = [norm for attention in attentions for norm in attention.norms()]
        assert all(map(_understood, map(_lead, blocks))) is all(norm.kind == "rms" for norm in norms), name


@pytest.mark.parametrize("residency", ["mapped", "copied"])
def test_an_engine_uses_them(residency: str, pack: Any) -> None:
    with Engine.open(pack, residency=residency) as engine:
        engine.step([3, 4, 5], cache=engine.cache(8))
        with engine.held.weights(0) as weights:
            assert list(weights.programs) == [engine.forward.programs]


def test_what_is_not_known_goes_through_the_layers() -> None:
    @dataclass(frozen=True)
    class Louder(FeedForward):
        factor: float = 2.0

    plain = BLOCKS["plain"]
    layer = plain.branches[1].layer
    assert isinstance(layer, FeedForward)
    louder = Louder(layer.width, layer.activation, layer.gate, layer.up, layer.down)
    block = replace(plain, branches=(plain.branches[0], replace(plain.branches[1], layer=louder)))
    assert _understood(plain) and not _understood(block)
    centred = attention(query_norm=Norm("qn.weight", HEAD, 1e-5, "layer"))
    assert not _understood(Block(0, (Branch(centred),)))

    class Own:
        """An attention method that says nothing of what is seen."""

        def attend(self, query: Any, cache: Any, step: Any, layer: Any) -> Any:
            return kernels.attention(query, cache, step.visible(None), layer.scale)

    weights = Steady(weights_of(plain, "f32"))
    steps(Forward(architecture(plain), attention=Own()), plain, weights, "f32")
    assert not weights.programs


def test_a_step_that_does_not_fit_is_refused_as_ever(pack: Any) -> None:
    from haversack.core.errors import UserError

    block, weights = BLOCKS["plain"], Steady(weights_of(BLOCKS["plain"], "f32"))
    forward = Forward(architecture(block))
    hidden = np.zeros((3, WIDTH), np.float32)
    with pytest.raises(UserError, match="do not fit a cache of 2"):
        layer = CacheLayer.empty(KEY_HEADS, 2, HEAD)
        forward.advance(block, hidden, Step(np.arange(3, dtype=np.int32), 0), layer, weights)
