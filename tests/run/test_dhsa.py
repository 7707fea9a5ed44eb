"""DHSA: its maths against brute force, its choices in the engine, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.kernels import CacheLayer, cache_write
from haversack.models._architecture import Attention, Linear
from haversack.run import Engine, Limits, generate
from haversack.run._batch import Batch
from haversack.run._source import open_model
from haversack.run._step import Step
from haversack.run.attention._predictor import FILE, BoundaryPredictor, fingerprint, shapes
from haversack.run.attention._prompt import Gaps, Prompt, Tally
from haversack.run.attention._selection import by_columns_and_bands
from haversack.run.attention.dhsa import DHSA, choose_borders

TEXT = np.random.default_rng(5).integers(3, 280, 400).astype(np.int32)
SMALL = "sinks=8,local=16,query_block=16,tail=20"


def predictor(channels: int, model: str = "", seed: int = 0) -> BoundaryPredictor:
    rng = np.random.default_rng(seed)
    tensors = {
        name: (0.4 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes(channels).items()
    }
    tensors["norm.weight"][:] = 1
    tensors["second.bias"][:] = 1.2
    return BoundaryPredictor(tensors, 4, 4, model)


def trained_for(source: Any, path: Path) -> Path:
    """A drawn predictor that says it belongs to `source`."""
    model = open_model(source)
    attention = model.architecture.blocks[0].attention
    channels = attention.key_value_heads * attention.head_width
    predictor(channels, fingerprint(model.source, model.architecture)).write(path)
    return path


def logits_of(source: Any, attention: str, text: Any = TEXT, **slots: Any) -> tuple[np.ndarray, Any]:
    with Engine.open(source, attention=attention, **slots) as engine:
        found = engine.slots.prefill.prefill(engine, text, engine.cache(len(text) + 1))
        return found, engine.reader and engine.reader.tally


@pytest.fixture(scope="module")
def long(family: Any) -> Any:
    """A model of any recorded case that takes 512 tokens."""

    def make(name: str, **changes: Any) -> Any:
        return family(name, max_position_embeddings=512, **changes)

    return make


# ---- maths


def test_borders_of_the_known_example() -> None:
    logits = np.full(64, -5.0, np.float32)
    logits[[10, 15, 30, 50]] = [0.9, 0.8, 0.7, 0.1]
    assert choose_borders(logits, 64, threshold=0.5, apart=8).tolist() == [0, 11, 31, 64]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tail=st.sampled_from([0, 1, 30, 200]), size=st.sampled_from([16, 64]))
def test_borders_keep_their_distance(seed: int, tail: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal(200)).astype(np.float32)
    borders = choose_borders(logits, size, 1.1, 8, 4, tail)
    found = [gap for gap in borders - 1 if gap >= 4 and gap + 1 not in (200, 200 - tail)]
    assert borders[0] == 0 and borders[-1] == 200 and bool((np.diff(borders) > 0).all())
    assert len(found) <= 200 // size * 8
    assert all(logits[gap] > 1.1 for gap in found)
    assert all(b - a > 8 for a, b in pairwise(found))
    if tail:
        assert 200 - tail in borders and not any(200 - tail < border < 200 for border in borders)
    open_gaps = range(4, min(196, 200 - tail - 1) if tail else 196)
    best = max(open_gaps, key=lambda gap: logits[gap], default=None)
    if best is not None and logits[best] > 1.1:
        assert best + 1 in borders


def test_columns_and_bands_share_the_budget() -> None:
    columns, bands = np.zeros(100, np.float32), np.zeros(14, np.float32)
    columns[[7, 50]] = 1
    bands[5] = 1  # 40 to 47 keys back
    found = by_columns_and_bands(columns, bands, 8, 0, 104, range(100), 13)
    assert {7, 50} <= set(found) and len(found) == 13
    assert set(found) - {7, 50} <= set(range(53, 64)) | set(np.flatnonzero(columns == 0))
    assert len(set(found) & set(range(53, 64))) >= 7
    assert len(set(by_columns_and_bands(columns, bands, 8, 0, 104, range(100), 300))) == 100


def brute_force(
    q: Any, k: Any, v: Any, borders: Any, method: DHSA, window: int | None, softcap: float
) -> Any:
    """The method in its own words, token by token, in f64; k, v [n, kv heads, d], q [n, heads, d]."""
    q, k, v = (each.astype(np.float64) for each in (q, k, v))
    n, heads, _ = q.shape
    group, out = heads // k.shape[1], np.zeros(q.shape)
    for first in range(0, n, method.query_block):
        end = min(first + method.query_block, n)
        low = 0 if window is None else max(first - window + 1, 0)
        for kv_head in range(k.shape[1]):
            together = method.heads == "together"
            asked = slice(0, heads) if together else slice(kv_head * group, (kv_head + 1) * group)
            query = q[first:end, asked].mean(axis=(0, 1)) * np.sqrt(end - first)
            keys = k.mean(axis=1) if together else k[:, kv_head]
            score = {}
            for begin, stop in pairwise(borders):
                stop = min(stop, end)
                if begin >= stop:
                    continue
                vector = keys[begin:stop].mean(axis=0) * np.sqrt(stop - begin)
                score |= dict.fromkeys(range(begin, stop), float(query @ vector))
            always = set(range(first, end)) | set(range(max(end - method.local, low), end))
            always |= set(range(low, min(low + method.sinks, first)))
            others = sorted((t for t in range(low, first) if t not in always), key=lambda t: (-score[t], t))
            chosen = always | set(others[: method.budget - len(always)])
            assert len(chosen) == min(method.budget, end - low)
            for i in range(first, end):
                seen = [t for t in sorted(chosen) if t <= i and (window is None or t > i - window)]
                for head in range(kv_head * group, (kv_head + 1) * group):
                    scores = k[seen, kv_head] @ q[i, head] * 0.3
                    scores = softcap * np.tanh(scores / softcap) if softcap else scores
                    powers = np.exp(scores - scores.max())
                    out[i, head] = powers @ v[seen, kv_head] / powers.sum()
    return out


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("heads", ["together", "apart"])
@pytest.mark.parametrize("pieces", [(160,), (32, 64, 64)])
def test_attention_equals_brute_force(window: Any, softcap: float, heads: str, pieces: Any) -> None:
    rng = np.random.default_rng(7)
    n, width = 160, 12
    q = rng.standard_normal((n, 6, width)).astype(np.float32)
    k, v = rng.standard_normal((2, n, 2, width)).astype(np.float32)
    borders = np.array([0, 9, 13, 40, 41, 77, 90, 130, 160])
    method = DHSA(budget=48, sinks=5, local=20, query_block=16, tail=0, heads=heads)
    blank = Linear("", 1, 1)
    layer = Attention(6, 2, width, 0.3, *[blank] * 4, window=window, softcap=softcap or None)
    cache = CacheLayer.empty(2, n, width)
    cache_write(cache, 0, k, v)
    prompt = Prompt(method, borders, n, method.budget, Tally())
    parts, at = [], 0
    for count in pieces:
        step = Step(np.arange(at, at + count, dtype=np.int32), at)
        step.prompt = prompt
        parts.append(method.attend(q[at : at + count], cache, step, layer))
        at += count
    wanted = brute_force(q, k, v, borders, method, window, softcap)
    assert np.abs(np.concatenate(parts) - wanted).max() <= 1e-5
    assert prompt.tally.pairs < prompt.tally.all


# ---- the predictor


def test_a_gap_depends_on_the_keys_around_it_alone() -> None:
    keys = np.random.default_rng(1).standard_normal((90, 16)).astype(np.float32)
    made = predictor(16)
    whole = made.logits(keys)
    other = keys.copy()
    other[60] += 3
    changed = np.flatnonzero(made.logits(other) != whole)
    assert changed.min() == 56 and changed.max() == 63
    gaps = Gaps(made)
    for begin, end in ((0, 3), (3, 50), (50, 51), (51, 90)):
        gaps.extend(keys[begin:end])
    assert np.allclose(gaps.logits, whole, atol=1e-5)


def test_its_file_is_read_back(tmp_path: Path) -> None:
    made = replace(predictor(16, "abc"), threshold=-0.75)
    made.write(tmp_path / "p")
    read = BoundaryPredictor.open(tmp_path / "p")
    assert (read.heads, read.window, read.model, read.channels) == (4, 4, "abc", 16)
    assert read.threshold == -0.75
    keys = np.ones((20, 16), np.float32)
    assert np.array_equal(read.logits(keys), made.logits(keys))


# ---- the engine


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "qwen3"])
@pytest.mark.parametrize("mode", ["dhsa", "block", "dhsa_topk", "dhsa_vs", "sliding"])
def test_a_budget_as_long_as_the_prompt_is_dense(name: str, mode: str, long: Any, tmp_path: Path) -> None:
    source = long(name)
    given = f"dhsa:mode={mode},budget=400,predictor={trained_for(source, tmp_path / 'p')},{SMALL}"
    found, tally = logits_of(source, given)
    assert np.array_equal(found, logits_of(source, "dense")[0])
    assert "fit in the budget" in tally.note


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_every_key_through_the_sparse_kernel_is_dense(name: str, long: Any) -> None:
    source = long(name)
    found, tally = logits_of(source, f"dhsa:mode=dense,budget=48,{SMALL}")
    assert np.array_equal(found, logits_of(source, "dense")[0])
    assert tally.pairs == tally.all and not tally.note


@pytest.mark.parametrize("mode", ["dhsa", "block", "dhsa_topk", "dhsa_vs", "sliding"])
def test_modes_skip_most_pairs_and_change_the_answer(mode: str, long: Any, tmp_path: Path) -> None:
    source = long("gemma2", sliding_window=300)
    given = f"dhsa:mode={mode},budget=64,predictor={trained_for(source, tmp_path / 'p')},{SMALL}"
    found, tally = logits_of(source, given)
    dense = logits_of(source, "dense")[0]
    assert tally.pairs < 0.45 * tally.all
    assert np.isfinite(found).all() and not np.array_equal(found, dense)
    assert np.array_equal(found, logits_of(source, given)[0])


@pytest.mark.parametrize("mode", ["dhsa", "block", "dhsa_vs"])
def test_chunks_of_256_have_the_bits_of_a_whole_prompt(mode: str, long: Any) -> None:
    given = f"dhsa:mode={mode},borders=fixed,budget=64,{SMALL}"
    source = long("llama")
    whole = logits_of(source, given)[0]
    assert np.array_equal(logits_of(source, given, prefill="chunked:tokens=256")[0], whole)


@pytest.mark.parametrize("tokens", [7, 64, 256])
def test_predicted_borders_with_a_prompt_in_chunks(tokens: int, long: Any, tmp_path: Path) -> None:
    source = long("llama")
    given = f"dhsa:budget=64,predictor={trained_for(source, tmp_path / 'p')},{SMALL}"
    found, tally = logits_of(source, given, prefill=f"chunked:tokens={tokens}")
    assert np.isfinite(found).all() and tally.pairs < 0.5 * tally.all and tally.borders > 10


def test_what_is_written_is_dense(folder: Path, draft: Path) -> None:
    """Drafted tokens equal those written one by one, behind a prompt that was read sparsely."""
    given = f"dhsa:mode=block,budget=64,{SMALL}"
    answers = []
    trees = "tree:alpha=1e-5,branch_threshold=1e-3"
    for slots in ({}, {"decode": "linear-draft:length=8", "draft": draft}, {"decode": trees, "draft": draft}):
        with Engine.open(folder, attention=given, **slots) as engine:
            answers.append([token.id for token in generate(engine, TEXT, Limits(24, end=()))])
            assert engine.reader.tally.pairs < 0.6 * engine.reader.tally.all
    assert answers[0] == answers[1] == answers[2]


def test_a_text_that_goes_on_knows_its_older_borders(folder: Path, tmp_path: Path) -> None:
    """Tokens read by single steps between two pieces of a prompt are judged from the cache's keys."""
    sizes = "budget=64,tail=0,sinks=8,local=16,query_block=16"
    given = f"dhsa:{sizes},predictor={trained_for(folder, tmp_path / 'p')}"
    with Engine.open(folder, attention=given) as engine:
        whole, pieces = engine.cache(400), engine.cache(400)
        engine.step(TEXT, cache=whole)
        engine.step(TEXT[:200], cache=pieces)
        for token in TEXT[200:230]:
            engine.step([token], cache=pieces)
        engine.step(TEXT[230:], cache=pieces)
        assert np.allclose(pieces.gaps[0].logits, whole.gaps[0].logits, atol=1e-4)
        pieces.truncate(100)
        assert pieces.gaps is None


@pytest.mark.parametrize("count", [1, 3, 15, 16])
def test_prompts_shorter_than_a_chunk(count: int, folder: Path, tmp_path: Path) -> None:
    given = f"dhsa:predictor={trained_for(folder, tmp_path / 'p')}"
    found, tally = logits_of(folder, given, TEXT[:count])
    assert np.array_equal(found, logits_of(folder, "dense", TEXT[:count])[0])
    assert count == 1 or tally.note == f"dense, for the prompt's {count} tokens fit in the budget of 2048"


def test_layers_may_have_borders_of_their_own(folder: Path, tmp_path: Path) -> None:
    """Each layer's gaps are then judged by its own keys."""
    file = trained_for(folder, tmp_path / "p")
    given = f"dhsa:budget=64,predictor={file},{SMALL}"
    shared, own = logits_of(folder, given)[0], logits_of(folder, f"{given},share_borders=false")[0]
    assert np.isfinite(own).all() and not np.array_equal(shared, own)
    with Engine.open(folder, attention=f"{given},share_borders=false") as engine:
        cache = engine.cache(400)
        engine.step(TEXT, cache=cache)
        assert sorted(cache.gaps) == [0, 1, 2]
        keys, _ = cache.layers[2].floats(slice(0, 400))
        flat = np.ascontiguousarray(keys.transpose(1, 0, 2)).reshape(400, -1)
        assert np.allclose(cache.gaps[2].logits, engine.reader.predictor.logits(flat), atol=1e-4)


def test_borders_may_come_from_a_later_block(folder: Path, tmp_path: Path) -> None:
    """The blocks before it have borders at equal distances, those after it share its own."""
    given = f"dhsa:budget=64,predictor={trained_for(folder, tmp_path / 'p')},{SMALL}"
    with Engine.open(folder, attention=f"{given},border_block=1") as engine:
        cache = engine.cache(400)
        engine.step(TEXT, cache=cache)
        assert sorted(cache.gaps) == [1]
    with pytest.raises(UserError, match=r"border_block=3 has no attention \(allowed 0 to 2\)"):
        Engine.open(folder, attention=f"{given},border_block=3")


def test_shared_choices_are_those_of_the_first_layer(folder: Path) -> None:
    text = f"dhsa:mode=block,budget=64,{SMALL}"
    apart, shared = logits_of(folder, text)[0], logits_of(folder, f"{text},share_selection=true")[0]
    assert not np.array_equal(apart, shared)


@pytest.mark.parametrize("cache_type", ["f16", "int8"])
def test_smaller_caches(cache_type: str, folder: Path) -> None:
    given = f"dhsa:mode=block,budget=200,{SMALL}"
    exact, rounded = logits_of(folder, given)[0], logits_of(folder, given, cache_type=cache_type)[0]
    assert np.abs(exact - rounded).max() < 0.2 * np.abs(exact).max()


def with_predictor(pack: Path, goal: Path, file: Path) -> Path:
    source = Pack.open(pack)
    with PackWriter(goal) as writer:
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)], entry.group, entry.layout)
        writer.add_file("tokenizer.json", source.read_file("tokenizer.json"))
        writer.add_file(FILE, file)
        writer.finish(
            {"architecture": source.record.architecture, "plan": {"attention": f"dhsa:budget=64,{SMALL}"}}
        )
    return goal


def test_a_pack_brings_its_predictor_and_plan(pack: Path, tmp_path: Path) -> None:
    made = with_predictor(pack, tmp_path / "long.pack", trained_for(pack, tmp_path / "p"))
    with Engine.open(made) as engine:
        assert engine.plan["attention"].startswith("dhsa:")
        engine.step(TEXT, cache=engine.cache())
        assert engine.reader.tally.borders > 10
        assert dict(engine.memory_plan((400, 10)).lines)["sparse attention"] > 0
    with Engine.open(made, attention="dense") as engine:
        assert engine.reader is None


def test_another_models_predictor_is_refused(pack: Path, draft: Path, long: Any, tmp_path: Path) -> None:
    made = with_predictor(pack, tmp_path / "wrong.pack", trained_for(draft, tmp_path / "p"))
    with pytest.raises(UserError, match="another model's keys") as refused:
        Engine.open(made)
    assert refused.value.field == "predictor"
    predictor(48).write(tmp_path / "wide")
    with pytest.raises(UserError, match="keys of 48 numbers and the model's have 32") as refused:
        Engine.open(pack, attention=f"dhsa:predictor={tmp_path / 'wide'}")
    assert refused.value.nearest == 32


def test_without_a_predictor_the_command_is_named(pack: Path) -> None:
    with pytest.raises(UserError, match=r"no boundary predictor.*haversack pack MODEL --attention dhsa"):
        Engine.open(pack, attention="dhsa")
    with pytest.raises(UserError, match="is not there"):
        Engine.open(pack, attention="dhsa:predictor=/nowhere/p")


@pytest.mark.parametrize("cut", [4, 200, -40])
def test_a_damaged_predictor_is_refused(cut: int, folder: Path, tmp_path: Path) -> None:
    path = trained_for(folder, tmp_path / "p")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFileError):
        Engine.open(folder, attention=f"dhsa:predictor={path}")


@pytest.mark.parametrize(
    ("given", "field", "nearest"),
    [
        ("budget=200", "budget", 256),
        ("budget=300,local=0,sinks=100,query_block=256", "budget", 356),
        ("mode=dhsa_topk,budget=63,query_block=32", "budget", 64),
        ("query_block=0", "query_block", 16),
        ("query_block=-64", "query_block", 16),
        ("query_block=100", "query_block", 128),
        ("density=1.5", "density", 1),
        ("density=-0.1", "density", 0),
        ("density=nan", "density", 0),
        ("local=-1", "local", 0),
        ("mode=dhsa_top", "mode", "dhsa_topk"),
        ("pooling=avg", "pooling", None),
    ],
)
def test_impossible_parameters_are_refused(given: str, field: str, nearest: Any, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        Engine.open(folder, attention=f"dhsa:{given}")
    assert refused.value.field == field
    assert nearest is None or refused.value.nearest == nearest


def test_a_server_refuses_it(folder: Path) -> None:
    with (
        Engine.open(folder, attention="dhsa:mode=block") as engine,
        pytest.raises(UserError, match="one prompt"),
    ):
        Batch(engine, contexts=2)
