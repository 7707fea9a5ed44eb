"""Layers that keep their window alone: the bits of layers that keep everything, whatever is read and cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.kernels import cache_write
from haversack.run import Cache, Engine, Limits, Sampler, generate
from haversack.run._prefix import Prefix
from haversack.run._step import Step, is_linear
from haversack.run._window import BACK, ROOM, Window, cache_nbytes, windows_of

LENGTH = 760
TEXT = np.random.default_rng(11).integers(3, 280, LENGTH).astype(np.int32)
LONG = {"max_position_embeddings": 1024}
FAMILIES = ["mistral", "gemma2", "gemma3", "smollm3-window", "phi3", "qwen2", "qwen3"]


def read(
    engine: Engine, sizes: list[int], tokens: np.ndarray = TEXT, **options: Any
) -> tuple[np.ndarray, Cache]:
    """Logits of all `tokens`, read in steps of `sizes` (the last size repeats)."""
    cache = engine.cache(LENGTH + 64, **options)
    rows, at = [], 0
    while at < len(tokens):
        size = sizes[min(len(rows), len(sizes) - 1)]
        rows.append(engine.step(tokens[at : at + size], cache=cache, want="all")[0])
        at += size
    return np.concatenate(rows), cache


def moved(cache: Cache) -> bool:
    """Whether something was left out."""
    return bool(cache.stretches) and all(stretch.shift > ROOM for stretch in cache.stretches.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_bits_of_a_whole_cache(name: str, family: Any) -> None:
    with Engine.open(family(name, **LONG)) as engine:
        plain, full = read(engine, [LENGTH], whole=True)
        assert not full.stretches and full.nbytes == engine.architecture.cache_nbytes(LENGTH + 64)
        for sizes in ([1], [8], [LENGTH], [3, 1, 17, 5], [300, 1], [255, 2]):
            rows, cache = read(engine, sizes)
            assert np.array_equal(rows, plain), sizes
            assert moved(cache) and cache.nbytes < 0.8 * full.nbytes


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cache_type", ["f16", "int8"])
@pytest.mark.parametrize("name", ["gemma3", "mistral"])
def test_narrow_caches_and_threads_change_no_bit(
    name: str, cache_type: str, threads: int, family: Any
) -> None:
    with Engine.open(family(name, **LONG), cache_type=cache_type, threads=threads) as engine:
        plain, _ = read(engine, [LENGTH], whole=True)
        for sizes in ([LENGTH], [300, 1]):
            rows, cache = read(engine, sizes)
            assert np.array_equal(rows, plain) and moved(cache), sizes


@pytest.mark.parametrize("sink", [0, 5])
@pytest.mark.parametrize("kind", ["folder", "pack"])
def test_a_chosen_window_keeps_itself_and_its_sink(kind: str, sink: int, request: Any, family: Any) -> None:
    model = request.getfixturevalue(kind)
    with Engine.open(model, attention=f"sliding:window=24,sink={sink}") as engine:
        text = TEXT[:500]
        plain, full = read(engine, [500], text, whole=True)
        for sizes in ([1], [500], [7]):
            rows, cache = read(engine, sizes, text, back=0)
            assert np.array_equal(rows, plain), sizes
            assert cache.stretches[0].shift > 100
            assert cache.nbytes == full.nbytes * (sink + 23 + 256) // (LENGTH + 64)
    with Engine.open(family("gemma2", **LONG), attention=f"sliding:window=30,sink={sink}") as engine:
        plain, _ = read(engine, [LENGTH], whole=True)
        rows, cache = read(engine, [400, 1])
        assert np.array_equal(rows, plain)
        assert {one.window for one in cache.stretches.values()} == {Window(11), Window(30, sink)}


def test_frequencies_that_change_on_the_way(family: Any) -> None:
    """LongRoPE with a window: the text is read again at the switch, and goes on."""
    source = family("phi3-switch", **LONG, original_max_position_embeddings=600, sliding_window=12)
    with Engine.open(source) as engine:
        plain, _ = read(engine, [LENGTH], whole=True)
        for sizes in ([1], [599, 1], [500, 200]):
            rows, cache = read(engine, sizes)
            assert np.array_equal(rows, plain) and moved(cache), sizes


def test_a_short_context_keeps_everything(family: Any) -> None:
    with Engine.open(family("gemma3")) as engine:
        cache = engine.cache(40)
        assert not cache.stretches
        assert cache.nbytes == engine.architecture.cache_nbytes(40)
        assert engine.plan["cache_keeps"] == "everything"
    with Engine.open(family("gemma3", **LONG)) as engine:
        assert engine.plan["cache_keeps"] == "windows"
    for options in ({"whole_cache": True}, {"attention": "dhsa:mode=block,budget=256"}):
        with Engine.open(family("gemma3", **LONG), **options) as engine:
            assert engine.plan["cache_keeps"] == "everything"
            assert not engine.cache().stretches


# cutting back


def test_a_text_can_be_cut_to_the_border_and_no_further(family: Any) -> None:
    with Engine.open(family("gemma2", **LONG)) as engine:
        plain, cache = read(engine, [300, 1])
        least = max(stretch.least for stretch in cache.stretches.values())
        assert LENGTH - BACK - ROOM <= least <= LENGTH - BACK
        with pytest.raises(UserError, match="cut it to 0") as refused:
            cache.truncate(least - 1)
        assert (refused.value.field, refused.value.given, refused.value.nearest) == (
            "length",
            least - 1,
            least,
        )
        assert cache.length == LENGTH
        assert (cache.reach(least - 1), cache.reach(least), cache.reach(LENGTH)) == (0, least, LENGTH)
        cache.truncate(least)
        again, _ = engine.step(TEXT[least:], cache=cache, want="all")
        assert again is not None and np.array_equal(again, plain[least:])
        cache.truncate(0)
        again, _ = engine.step(TEXT, cache=cache, want="all")
        assert again is not None and np.array_equal(again, plain)


def test_a_sink_can_be_cut_into(folder: Path) -> None:
    with Engine.open(folder, attention="sliding:window=24,sink=9") as engine:
        plain, cache = read(engine, [600], TEXT[:600])
        assert cache.reach(200) == 9 and cache.reach(7) == 7
        cache.truncate(7)
        again, _ = engine.step(TEXT[7:600], cache=cache, want="all")
        assert again is not None and np.array_equal(again, plain[7:])


def test_a_prompt_longer_than_the_layers(family: Any) -> None:
    """After any prompt the text can be cut back by BACK entries, and goes on with the same bits."""
    with Engine.open(family("gemma3", **LONG)) as engine:
        for length in (390, 511, 512, 513, 700):
            plain, cache = read(engine, [length], TEXT[:length])
            for back in (1, BACK):
                cache.truncate(length - back)
                again, _ = engine.step(TEXT[length - back : length], cache=cache, want="all")
                assert again is not None and np.array_equal(again, plain[length - back :])


def test_gather_keeps_the_accepted_branch(family: Any) -> None:
    for attention in ("dense", "sliding:window=20,sink=3"):
        with Engine.open(family("gemma2", **LONG), attention=attention) as engine:
            _, cache = read(engine, [600, 1], TEXT[:700])
            mask = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], bool)
            places = np.array([700, 701, 701, 702], np.int32)
            rows, _ = engine.step([5, 6, 7, 8], places, mask, cache, want="all")
            plain, _ = read(engine, [703], np.append(TEXT[:700], [5, 7, 8]).astype(np.int32), whole=True)
            assert rows is not None and np.array_equal(rows[[0, 2, 3]], plain[700:])
            for wrong in ([*range(100), *range(200, 704)], range(10)):
                with pytest.raises(UserError, match="no longer hold"):
                    cache.gather(list(wrong))
            assert cache.length == 704
            cache.gather([*range(701), 702, 703])
            assert cache.linear
            after, _ = engine.step([9], cache=cache)
            plain, _ = read(engine, [704], np.append(TEXT[:700], [5, 7, 8, 9]).astype(np.int32), whole=True)
            assert after is not None and np.array_equal(after[0], plain[-1])


def test_what_is_not_held_is_never_read(family: Any) -> None:
    """Steps back in the text, and masks over entries that are gone."""
    with Engine.open(family("mistral", **LONG)) as engine:
        _, cache = read(engine, [300, 1])
        base = next(iter(cache.stretches.values())).base
        with pytest.raises(UserError, match="make it with whole=True") as refused:
            engine.step([5], np.array([base + 10], np.int32), None, cache)
        assert refused.value.field == "cache" and cache.length == LENGTH
        mask = np.ones((1, LENGTH + 1), bool)  # all entries, of which the window leaves the last
        after, _ = engine.step([5], None, mask, cache)
        cache.truncate(LENGTH)
        same, _ = engine.step([5], cache=cache)
        assert after is not None and same is not None and np.array_equal(after, same)
        many = BACK + ROOM + 1
        tokens, places = np.full(many, 5, np.int32), np.full(many, LENGTH, np.int32)
        wide = engine.cache(LENGTH + many)
        engine.step(TEXT, cache=wide)
        with pytest.raises(UserError, match="whole=True"):
            engine.step(tokens, places, np.eye(many, dtype=bool), wide)
        rows, _ = engine.step(tokens[1:], places[1:], np.eye(many - 1, dtype=bool), wide, want="all")
        assert rows is not None and np.array_equal(rows[-1], same[0])


def test_a_step_that_is_interrupted_leaves_nothing_wrong(family: Any) -> None:
    """Wherever a prompt stops on its way through the blocks, what can be gone on from gives the same bits."""
    with Engine.open(family("gemma2", **LONG)) as engine:
        plain, _ = read(engine, [LENGTH], whole=True)
        advance, left = engine.forward.advance, 0

        def interrupted(*given: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            advance(*given)

        for start in (100, 450):
            for passes in range(1, 8):
                left = passes
                _, cache = read(engine, [start, 1], TEXT[: start + 1])
                engine.forward.advance = interrupted  # type: ignore[method-assign]
                with pytest.raises(KeyboardInterrupt):
                    engine.step(TEXT[start + 1 :], cache=cache)
                engine.forward.advance = advance  # type: ignore[method-assign]
                length = cache.reach(start + 1)
                cache.truncate(length)
                again, _ = engine.step(TEXT[length:], cache=cache, want="all")
                assert again is not None and np.array_equal(again, plain[length:]), (start, passes)


def test_a_move_that_is_interrupted_holds_nothing(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from haversack.run import _window

    with Engine.open(family("gemma2", **LONG)) as engine:
        plain, cache = read(engine, [300, 1], TEXT[:394])

        def interrupted(*given: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(_window, "cache_gather", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step(TEXT[394:402], cache=cache)
        monkeypatch.undo()
        assert cache.reach(cache.length) == 0
        with pytest.raises(UserError, match="hold no entries any more"):
            engine.step(TEXT[394:402], cache=cache)
        cache.truncate(0)
        again, _ = engine.step(TEXT[:394], cache=cache, want="all")
        assert again is not None and np.array_equal(again, plain)


# Against a plain list: layers of two windows whose keys are the numbers of their tokens.

HEADS, WIDTH, CAPACITY = 2, 16, 1100
WINDOWS = (None, Window(7), Window(40, 3))


def bare(back: int) -> Cache:
    attention = SimpleNamespace(key_value_heads=HEADS, head_width=WIDTH)
    blocks = [SimpleNamespace(index=index, attention=attention) for index in range(len(WINDOWS))]
    architecture: Any = SimpleNamespace(blocks=blocks, writing=blocks, reader=None, changes_at=None)
    return Cache(architecture, CAPACITY, "f32", windows=WINDOWS, back=back)


def append(cache: Cache, names: list[int], positions: np.ndarray, mask: np.ndarray | None) -> list[Step]:
    """What `Engine.step` does with a cache, without a model."""
    start, linear = cache.length, is_linear(cache, positions)
    cache.place(positions, np.asarray(names, np.int32))
    step = Step(positions, start, mask, None if linear else cache.positions[:start])
    cache.plan([step])
    found = []
    numbers = np.repeat(np.asarray(names, np.float32), HEADS * WIDTH).reshape(len(names), HEADS, WIDTH)
    for index, layer in enumerate(cache.layers):
        assert layer is not None
        stretch = cache.stretches.get(index)
        own = step if stretch is None else stretch.step(index, layer, 0)
        cache_write(layer, own.start, numbers, -numbers)
        found.append(own)
    cache.append(len(names), linear)
    return found


def seen(cache: Cache, steps: list[Step], index: int, queries: list[int]) -> list[list[float]]:
    """The names that `queries` of a step saw in the layer of block `index`, in order."""
    window, layer = WINDOWS[index], cache.layers[index]
    assert layer is not None
    visible = steps[index].visible(*((None, 0) if window is None else (window.size, window.sink)))
    found = []
    for query in queries:
        keys, values = layer.floats(visible.entries(query))
        assert (keys == -values).all() and (keys == keys[:1, :, :1]).all()
        found.append(keys[0, :, 0].tolist())
    return found


def expected(
    texts: list[tuple[int, int]], count: int, mask: np.ndarray | None, index: int, queries: list[int]
) -> list[list[float]]:
    """The same of a list of (name, position)."""
    window, found, start = WINDOWS[index], [], len(texts) - count
    names, positions = np.array(texts).T
    for query in queries:
        allowed = np.ones(len(texts), bool)
        allowed[start:] = np.arange(count) <= query if mask is None else mask[query]
        if window is not None:
            near = positions > positions[start + query] - window.size
            near[: window.sink] = True
            allowed &= near
        found.append(names[allowed].tolist())
    return found


@given(data=st.data(), back=st.sampled_from([0, 60, 200]))
@settings(max_examples=40, deadline=None)
def test_a_cache_is_a_list_that_is_appended_to_and_cut(data: st.DataObject, back: int) -> None:
    cache, texts, name, longest = bare(back), [], 0, 0
    for _ in range(data.draw(st.integers(2, 14))):
        what = data.draw(st.sampled_from(["read", "read", "many", "many", "cut", "tree"]))
        room = CAPACITY - cache.length
        if what == "cut":
            wanted = data.draw(
                st.integers(0, cache.length) | st.integers(max(0, cache.length - back), cache.length)
            )
            length = cache.reach(wanted)
            assert length <= wanted and (wanted < longest - back or length == wanted)
            cache.truncate(length)
            longest = longest if length else 0
            del texts[length:]
            continue
        count = min(room, data.draw(st.integers(1, 12) if what != "many" else st.integers(150, 256)))
        if count < 4:
            continue
        names = list(range(name, name + count))
        name += count
        start, mask = cache.length, None
        positions = np.arange(start, start + count, dtype=np.int32)
        if what == "tree":
            parents = [data.draw(st.integers(0, max(0, node - 1))) for node in range(count)]
            mask = np.eye(count, dtype=bool)
            for node in range(1, count):
                mask[node] |= mask[parents[node]]
            positions = (start + mask.sum(axis=1) - 1).astype(np.int32)
        steps = append(cache, names, positions, mask)
        longest = max(longest, cache.length)
        texts += zip(names, positions.tolist(), strict=True)
        queries = sorted({0, count - 1, *range(0, count, 1 + count // 8)})
        for index in range(len(WINDOWS)):
            wanted = expected(texts, count, mask, index, queries)
            assert seen(cache, steps, index, queries) == wanted, (what, index)
        if what == "tree":
            assert mask is not None
            path = np.flatnonzero(mask[data.draw(st.integers(0, count - 1))])
            kept = [*range(start), *(start + path).tolist()]
            cache.gather(kept)
            texts = [texts[place] for place in kept]
            assert cache.linear


# drafts and chats


def answer(engine: Engine, **sampler: Any) -> list[int]:
    """What follows a prompt that nearly fills a layer: entries move on the way."""
    said = generate(engine, TEXT[:380], Limits(170, end=()), Sampler(**sampler))
    for _ in said:
        pass
    return said.tokens


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory, make_folder: Any, tiny_config: Any) -> dict[str, Path]:
    """Mistrals of three layers and of one, with windows of 20 and 14."""
    at, config = tmp_path_factory.mktemp("windowed"), {**tiny_config, **LONG, "model_type": "mistral"}
    small = {**config, "num_hidden_layers": 1, "sliding_window": 14}
    return {
        "model": make_folder(at / "model", {**config, "sliding_window": 20}),
        "draft": make_folder(at / "draft", small, seed=2),
    }


WIDE = "tree:alpha=1e-12,adaptive=none,branch_threshold=1e-4,pause=never"


@pytest.mark.parametrize("cache_type", ["f32", "int8"])
def test_drafts_and_trees_give_the_plain_tokens(cache_type: str, windowed: dict[str, Path]) -> None:
    model = windowed["model"]
    with Engine.open(model, cache_type=cache_type, whole_cache=True) as engine:
        plain = answer(engine)
    with Engine.open(model, cache_type=cache_type) as engine:
        assert answer(engine) == plain
    for draft in (windowed["draft"], model):  # one that is mostly wrong, one that is always right
        for decode in ("linear-draft:length=16", f"{WIDE},nodes=20", f"{WIDE},nodes=12,children=3"):
            with Engine.open(model, decode=decode, draft=draft, cache_type=cache_type) as engine:
                assert engine.cache(650).stretches and engine.draft is not None
                assert engine.draft.cache(650).stretches
                assert answer(engine) == plain, (draft.name, decode)


def test_drawn_tokens_are_the_plain_ones(windowed: dict[str, Path]) -> None:
    drawing = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    with Engine.open(windowed["model"], whole_cache=True) as engine:
        plain = answer(engine, **drawing)
    for decode in ("linear-draft:length=4,sampling=tokens", f"{WIDE},nodes=24"):
        with Engine.open(windowed["model"], decode=decode, draft=windowed["draft"]) as engine:
            assert answer(engine, **drawing) == plain


def test_a_conversation_that_goes_back_further_reads_again(windowed: dict[str, Path]) -> None:
    rng = np.random.default_rng(5)
    one = TEXT[:700]
    near = np.concatenate([one[:650], rng.integers(3, 280, 40).astype(np.int32)])
    far = np.concatenate([one[:200], rng.integers(3, 280, 450).astype(np.int32)])
    with Engine.open(windowed["model"]) as engine:
        prefix = Prefix()
        for prompt, reused in (
            (one, 0),
            (near, 650),
            (near, 689),
            (far, 0),
            (far[:600], 599),
            (far[:150], 0),
        ):
            cache, rest = prefix.begin(engine, prompt)
            assert prefix.reused == reused and len(rest) == len(prompt) - reused
            logits, _ = engine.step(rest, cache=cache)
            prefix.keep(prompt)
            plain, _ = engine.step(prompt, cache=engine.cache(800, whole=True))
            assert logits is not None and plain is not None and np.array_equal(logits, plain)
    with Engine.open(windowed["model"], whole_cache=True) as engine:
        prefix = Prefix()
        prefix.begin(engine, one)
        engine.step(one, cache=prefix._cache)
        prefix.keep(one)
        prefix.begin(engine, far)
        assert prefix.reused == 200


# memory


def test_the_plan_counts_what_the_cache_takes(family: Any, windowed: dict[str, Path]) -> None:
    with Engine.open(family("gemma3", **LONG), context_length=1000) as engine:
        windows = windows_of(engine.architecture)
        assert [one is None for one in windows] == [
            b.attention.window is None for b in engine.architecture.blocks
        ]
        for kind in ("f32", "f16", "int8"):
            for capacity in (40, 394, 395, 1000):
                cache = Cache(engine.architecture, capacity, kind, windows=windows)
                assert cache.nbytes == cache_nbytes(engine.architecture, windows, capacity, kind)
                assert cache.nbytes <= engine.architecture.cache_nbytes(capacity, kind)
        planned = dict(engine.memory_plan().lines)["KV cache, 1000 tokens"]
        assert planned == engine.cache().nbytes < 0.7 * engine.architecture.cache_nbytes(1000)
    tree = {"decode": "tree", "draft": windowed["draft"]}
    with Engine.open(windowed["model"], context_length=1000, **tree) as engine:
        assert engine.draft is not None
        spare = engine.slots.decode.spare
        lines = dict(engine.memory_plan().lines)
        drafting = engine.draft.cache(1000 + spare, back=max(BACK, spare))
        assert lines[f"draft: KV cache, {1000 + spare} tokens"] == drafting.nbytes


@pytest.fixture
def heavy(tmp_path: Path, make_folder: Any, tiny_config: Any) -> Iterator[Path]:
    """Two layers whose keys and values take 8 KiB a token each."""
    wide = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 2}
    long = {"max_position_embeddings": 8192, "sliding_window": 64, "model_type": "mistral"}
    yield make_folder(tmp_path / "heavy", {**tiny_config, **wide, **long})


def test_measured_memory_stays_below_the_smaller_plan(heavy: Path, tmp_path: Path) -> None:
    import json
    import sys

    from haversack.core.memory import run_measured

    prompt = tmp_path / "long.txt"
    prompt.write_text("qz" * 1900)
    found = {}
    for options in ((), ("--whole-cache",)):
        argv = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]
        argv += ["run", str(heavy), str(prompt), "--max-tokens", "8", "--ignore-end", "--json", *options]
        done = run_measured(argv, files=[heavy / "model.safetensors"], timeout=120)
        assert done.returncode == 0, done.stderr + done.stdout
        record = json.loads(done.stdout)
        assert done.peak_mib <= record["ram_mib"]["planned"]
        found[options] = record["tokens"], record["ram_mib"]["planned"], done.peak_mib
        assert record["plan"]["cache_keeps"] == ("everything" if options else "windows")
    (tokens, planned, peak), (same, more, higher) = found.values()
    assert tokens == same
    assert more - planned > 40 and higher - peak > 40
