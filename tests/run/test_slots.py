"""The methods of attention, prefill and context, alone and together."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.run import Engine, Limits, generate
from haversack.run._step import Step

TEXT = np.random.default_rng(11).integers(3, 280, 48).astype(np.int32)


def logits_of(source: Any, sizes: tuple[int, ...] = (48,), **slots: Any) -> np.ndarray:
    with Engine.open(source, **slots) as engine:
        cache, rows, at = engine.cache(60), [], 0
        for size in itertools.cycle(sizes):
            if at >= len(TEXT):
                return np.concatenate(rows)
            rows.append(engine.step(TEXT[at : at + size], cache=cache, want="all")[0])
            at += size
    raise AssertionError


def test_a_window_as_long_as_the_text_is_dense(folder: Path) -> None:
    assert np.array_equal(logits_of(folder, attention="sliding:window=48"), logits_of(folder))
    assert not np.array_equal(logits_of(folder, attention="sliding:window=47"), logits_of(folder))


@pytest.mark.parametrize("sizes", [(48,), (1,), (7,)])
def test_a_chosen_window_is_what_a_model_with_that_window_does(sizes: tuple[int, ...], family: Any) -> None:
    windowed = logits_of(family("mistral", sliding_window=9))
    whole = family("mistral", sliding_window=None)
    assert np.array_equal(logits_of(whole, sizes, attention="sliding:window=9"), windowed)


def test_the_narrower_window_holds(family: Any) -> None:
    source = family("mistral")  # its own window is 12
    assert np.array_equal(logits_of(source, attention="sliding:window=30"), logits_of(source))
    narrow = logits_of(family("mistral", sliding_window=5))
    assert np.array_equal(logits_of(source, attention="sliding:window=5"), narrow)


@pytest.mark.parametrize(
    ("start", "count", "at", "seen"),
    [(20, 20, 30, [0, 1, *range(25, 31)]), (0, 10, 5, list(range(6))), (0, 10, 7, [0, 1, *range(2, 8)])],
)
def test_the_sink_stays_visible(start: int, count: int, at: int, seen: list[int]) -> None:
    """A token sees exactly the first two tokens and the last six."""
    step = Step(np.arange(start, start + count, dtype=np.int32), start)
    assert step.visible(6, 2).entries(at - start).tolist() == seen


@pytest.mark.parametrize("sizes", [(1,), (5,), (48,)])
def test_a_sink_is_row_invariant(sizes: tuple[int, ...], folder: Path) -> None:
    sliding = "sliding:window=6,sink=2"
    assert np.array_equal(
        logits_of(folder, sizes, attention=sliding), logits_of(folder, (9,), attention=sliding)
    )


@pytest.mark.parametrize("tokens", [1, 7, 47, 48, 300])
@pytest.mark.parametrize("name", ["llama-dynamic", "qwen3"])
def test_chunks_change_no_bit(tokens: int, name: str, family: Any) -> None:
    found = []
    for prefill in ("whole", f"chunked:tokens={tokens}"):
        with Engine.open(family(name), prefill=prefill) as engine:
            cache = engine.cache(60)
            found.append(engine.slots.prefill.prefill(engine, TEXT, cache))
            found.append(engine.step([9], cache=cache)[0])
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])


def test_chunks_plan_less_memory(folder: Path) -> None:
    with Engine.open(folder) as whole, Engine.open(folder, prefill="chunked:tokens=64") as chunked:
        assert chunked.memory_plan((500, 10)).total_bytes < whole.memory_plan((500, 10)).total_bytes


SLOTS = {
    "residency": ["mapped", "copied", "streamed"],
    "attention": ["dense", "sliding:window=500"],
    "prefill": ["whole", "chunked:tokens=5"],
    "decode": ["one-by-one", "linear-draft:length=3", "tree:alpha=1e-5,branch_threshold=1e-3"],
}


@pytest.mark.parametrize("chosen", list(itertools.product(*SLOTS.values())))
def test_every_combination_gives_the_plain_tokens(chosen: tuple[str, ...], pack: Path, draft: Path) -> None:
    slots = dict(zip(SLOTS, chosen, strict=True))
    drafting = None if slots["decode"] == "one-by-one" else draft
    with Engine.open(pack) as engine:
        plain = generate(engine, TEXT, Limits(12, end=()))
        wanted = [token.id for token in plain]
    with Engine.open(pack, draft=drafting, **slots) as engine:
        assert [token.id for token in generate(engine, TEXT, Limits(12, end=()))] == wanted


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        ({"residency": "maped"}, "mapped"),
        ({"attention": "slidin"}, "sliding"),
        ({"prefill": "chunk"}, "chunked"),
        ({"decode": "one-by-on"}, "one-by-one"),
        ({"attention": "sliding:window=0"}, 1),
        ({"attention": "sliding:sink=-2"}, 0),
        ({"prefill": "chunked:tokens=0"}, 1),
        ({"decode": "linear-draft:length=9"}, 8),
        ({"activations": "int4"}, None),
        ({"cache_type": "f61"}, "f16"),
        ({"context_length": 0}, 1),
        ({"context_length": 513}, 512),
        ({"threads": 0}, 1),
    ],
)
def test_impossible_choices_name_the_nearest(options: dict[str, Any], nearest: Any, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        Engine.open(folder, **options)
    if nearest is not None:
        assert refused.value.nearest == nearest


def test_the_plan_of_a_pack_is_its_default(tmp_path: Path, make_pack: Any, tiny_config: Any) -> None:
    pack = make_pack(tmp_path / "plain.pack", tiny_config, "f32")
    with Engine.open(pack) as engine:
        assert engine.plan["activations"] == "f32"
        exact = logits_of(pack)
    quantized = logits_of(pack, activations="int8-dynamic")
    assert not np.array_equal(exact, quantized)
    assert np.abs(exact - quantized).max() < 0.2 * np.abs(exact).max()


def test_packed_weights_equal_their_unpacked_ones(pack: Path) -> None:
    """With f32 activations, int4 and int8 are the dequantized model to 1e-4 x max |logit|."""
    from haversack.kernels import Matrix, unpack

    with Engine.open(pack, activations="f32") as engine:
        packed, _ = engine.step(TEXT, cache=engine.cache(), want="all")
        for block in engine.architecture.blocks:
            with engine.held.weights(block.index) as weights:
                for linear in block.matrices():
                    weights[linear.weight] = Matrix.from_array(unpack(weights[linear.weight]))
        engine.held._head = Matrix.from_array(unpack(engine.held._head))
        engine.held._table = Matrix.from_array(unpack(engine.held._table))
        plain, _ = engine.step(TEXT, cache=engine.cache(), want="all")
    assert packed is not None and plain is not None
    assert np.abs(packed - plain).max() <= 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "int8", "int4", "int3"])
def test_embedding_rows_are_those_of_the_table(kind: str) -> None:
    from tests.run.conftest import quantized

    from haversack.kernels import Matrix, unpack
    from haversack.run._weights import embedding_rows

    values = np.random.default_rng(0).normal(size=(37, 96)).astype(np.float32)
    table = quantized(values, kind) if kind.startswith("int") else Matrix.from_array(values, kind)
    tokens = np.array([0, 36, 5, 5, 15, 16, 31, 32], np.int32)
    assert np.array_equal(embedding_rows(table, tokens), unpack(table)[tokens])
