"""The bench of SmallThinker: simulated time keeps to what it must, the drawn model's two files hold the same
numbers, and what is absent is a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench.smallthinker import _twins, bench, quality, real_size
from haversack.bench.smallthinker._events import Times, play
from haversack.run.residency.smallthinker import overlapped

LAYERS, EXPERTS, TOP = 3, 6, 2
CHOSEN = 3 * TOP
SMALL = {
    **real_size.OLMOE,
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}


def routes(tokens: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = [[rng.permutation(EXPERTS)[:TOP] for _ in range(LAYERS)] for _ in range(tokens)]
    return np.array(found, np.int32)


def times(attention_s: float = 0.004, matrix_s: float = 0.001, mb_s: float = 100.0) -> Times:
    return Times(attention_s, matrix_s, mb_s * 1e6)


def test_without_a_cache_every_layer_takes_what_the_bound_says() -> None:
    """Reads of 1 ms a matrix: behind attention they begin when it ends and hide behind the matrices' own
    computing alone; before it they hide behind it too."""
    text = routes(10)
    slow = times(matrix_s=0.0, mb_s=100.0)
    after = play(text, CHOSEN, slow, nbytes=100_000, early=False, keeps=False)
    ahead = play(text, CHOSEN, slow, nbytes=100_000, early=True, keeps=False)
    assert after.loads == ahead.loads == 10 * LAYERS * CHOSEN
    assert after.seconds == pytest.approx(10 * LAYERS * (0.004 + 0.006))
    assert ahead.seconds == pytest.approx(10 * LAYERS * max(0.004, 0.006))
    assert after.seconds / ahead.seconds == pytest.approx(overlapped(0.004, 0.006, 0.0))


@settings(max_examples=30, deadline=None)
@given(
    places=st.integers(CHOSEN, 3 * LAYERS * EXPERTS),
    seed=st.integers(0, 50),
    mb_s=st.sampled_from([10.0, 100.0, 1000.0]),
)
def test_reading_ahead_is_never_slower_and_nothing_beats_computing(
    places: int, seed: int, mb_s: float
) -> None:
    text = routes(12, seed)
    computing = 12 * LAYERS * (0.004 + CHOSEN * 0.001)
    ahead, after = (
        play(text, places, times(mb_s=mb_s), nbytes=50_000, early=early) for early in (True, False)
    )
    assert ahead.loads == after.loads
    reading = ahead.loads * 50_000 / (mb_s * 1e6)
    assert max(computing, reading) * (1 - 1e-9) <= ahead.seconds <= after.seconds * (1 + 1e-9)
    assert after.seconds <= (computing + reading) * (1 + 1e-9)
    cached = play(text, 3 * LAYERS * EXPERTS, times(mb_s=mb_s), nbytes=50_000, early=True)
    assert cached.loads <= ahead.loads


def test_the_two_files_of_the_drawn_model_hold_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from haversack.core.pack import Pack, check_pack
    from haversack.formats._gguf_blocks import dequantize
    from haversack.formats.gguf import GgufFile
    from haversack.kernels import Matrix, unpack
    from haversack.run import Engine

    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    pack, gguf = real_size.files(SMALL)
    assert check_pack(pack) == [] and real_size.files(SMALL) == (pack, gguf)
    source, file = Pack.open(pack), GgufFile.open(gguf)
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    stacked = dequantize("q4_0", file.bytes("blk.1.ffn_up_exps.weight"), (4, 32, 64))
    for expert in range(4):
        entry = source.tensors[name.format(expert)]
        data = source.bytes(entry.name)
        held = Matrix.from_bytes(entry.kind, entry.shape, entry.group, entry.layout, data)
        assert np.array_equal(unpack(held), stacked[expert]) and stacked[expert].std() > 0.01
    assert not np.array_equal(stacked[0], stacked[1])
    with Engine.open(pack, residency="streamed:smallthinker,buffer_kib=0") as engine:
        logits, _ = engine.step([1, 2, 3], cache=engine.cache(8))
    with Engine.open(pack, residency="copied") as engine:
        plain, _ = engine.step([1, 2, 3], cache=engine.cache(8))
    assert np.array_equal(logits, plain) and np.isfinite(plain).all()


def test_a_disk_that_is_too_small_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    monkeypatch.setattr(real_size, "SPARE_DISK", 1e18)
    with pytest.raises(Unavailable, match="GB of disk"):
        real_size.files(real_size.OLMOE)


def test_absent_data_and_twins_are_reasons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="tiny-shakespeare is not at hand"):
        _twins.parts()
    with pytest.raises(Unavailable, match="not trained yet"):
        _twins.trained(Run(quick=True, seed=1, deadline=1e9))


@pytest.mark.parametrize("kind", ["f32", "int4"])
def test_the_sparse_layer_computes_the_dense_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "FFN_ROWS", 128)
    monkeypatch.setattr(quality, "FFN_WIDTH", 256)
    sides = quality.sparse_and_dense(kind, 3)
    dense, sparse = sides["dense"](), sides["sparse"]()
    assert np.abs(dense - sparse).max() <= (0.2 if kind == "int4" else 1e-4) * np.abs(dense).max()


def test_every_bar_of_the_specification_has_a_row() -> None:
    ids = {row.id for row in bench.rows}
    bars = {"router-loss", "zeros", "ffn-exact", "tokens", "ahead-even", "events-ahead-even", "cached-50"}
    bars |= {"cached-550", "slowdown-50", "slowdown-550", "kv-hybrid", "head-skipped", "head-agrees"}
    bars |= {"process-bytes", "buffer-bytes", "real-size", "real-hits", "real-memory", "speed-21b"}
    assert bars <= ids
    assert all(row.bar is None for row in bench.rows if row.id in ("speed-21b", "real-size"))


def test_the_twins_differ_in_their_routers_alone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from haversack.bench.smallthinker._twins_torch import save, twin
    from haversack.models.language.smallthinker_torch import SmallThinkerShape
    from haversack.run import Engine

    shape = SmallThinkerShape(
        **{**_twins.SHAPE, "width": 64, "feed_forward": 64, "head_width": 16, "window": 8, "context": 64}
    )
    early, late = (twin(shape, early=one, seed=3) for one in (True, False))
    for (name, one), (other, two) in zip(early.named_parameters(), late.named_parameters(), strict=True):
        assert name == other and torch.equal(one, two)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 256, (1, 20), generator=generator)
    for model, is_early in ((early, True), (late, False)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            expected = model(tokens)[0].numpy()
        goal = tmp_path / str(is_early)
        save(goal, model, early=is_early)
        with Engine.open(goal) as engine:
            tap = engine.architecture.blocks[0].mixture.tap
            found, _ = engine.step(tokens[0].numpy(), cache=engine.cache(24), want="all")
        assert tap == ("residual" if is_early else "normed")
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
