"""Experts in a buffer: always the right bytes, never more of them than the budget, whatever is guessed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.expert_store import ExpertStore, ExpertStoreWriter
from haversack.core.storage import FailingStorage, SlowStorage
from haversack.run._eviction import EVICTIONS, eviction
from haversack.run._expert_buffer import ExpertBuffer, Worth
from haversack.run._shelf import Item, Shelf

LAYERS, EXPERTS, ROWS = 4, 6, 96
KEYS = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
RECORD = ROWS * 32 * 4


def matrix(key: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(key).standard_normal((ROWS, 32)).astype("<f4")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "experts.store"
    with ExpertStoreWriter(path, "m") as writer:
        for layer, expert in KEYS:
            writer.add(layer, expert, [("w", "f32", (ROWS, 32), None, "rows-1", [matrix((layer, expert))])])
        writer.finish()
    return path


class Live:
    """Loads from a store, and knows how many bytes of it are alive at once."""

    def __init__(self, store: ExpertStore) -> None:
        self.store, self.bytes, self.peak = store, 0, 0
        self.lock, self.begun = threading.Lock(), threading.Event()

    def load(self, key: tuple[int, ...], leaving: list[Item], going: Any = None) -> dict[str, np.ndarray]:
        with self.lock:
            self.bytes += RECORD - sum(item.nbytes for item in leaving)
            self.peak = max(self.peak, self.bytes)
        leaving.clear()
        self.begun.set()
        try:
            view = self.store.read(self.store.records[key[0], key[1], ""], None, going)
        except BaseException:
            with self.lock:
                self.bytes -= RECORD
            raise
        return {"w": np.frombuffer(view, "<f4").reshape(ROWS, 32)}


def buffer_of(
    store: ExpertStore, places: int, name: str = "intent", timeout_s: float = 20, keeps: bool = True
) -> tuple[ExpertBuffer, Live]:
    live = Live(store)
    shelf = Shelf(places * RECORD, eviction(name, LAYERS, EXPERTS), keeps)
    return ExpertBuffer(shelf, dict.fromkeys(KEYS, RECORD), live.load, timeout_s=timeout_s), live


def tokens(count: int, chosen: int = 2, seed: int = 0) -> Iterator[list[tuple[int, list[int]]]]:
    """What the routers of each layer choose, token by token."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield [
            (layer, rng.choice(EXPERTS, chosen, replace=False, p=np.arange(1, 7) / 21).tolist())
            for layer in range(LAYERS)
        ]


def run(buffer: ExpertBuffer, count: int = 25, guesses: str = "none", chosen: int = 2) -> None:
    rng = np.random.default_rng(9)
    for token in tokens(count, chosen):
        for layer, experts in token:
            buffer.need(layer, [(layer, expert) for expert in experts])
            following = (layer + 1) % LAYERS
            if guesses == "right" and layer + 1 < LAYERS:
                buffer.guess([(following, expert) for expert in token[layer + 1][1]])
            elif guesses == "wild":
                buffer.guess([(following, int(expert)) for expert in rng.permutation(EXPERTS)])
            for expert in experts:
                with buffer.use((layer, expert)) as found:
                    assert np.array_equal(found["w"], matrix((layer, expert)))


@pytest.mark.parametrize("places", [2, 3, 7, 24])
@pytest.mark.parametrize("guesses", ["none", "right", "wild"])
@pytest.mark.parametrize("name", EVICTIONS)
def test_every_expert_is_the_right_one_and_the_budget_holds(
    path: Path, name: str, guesses: str, places: int
) -> None:
    with ExpertStore.open(path) as store:
        buffer, live = buffer_of(store, places, name)
        run(buffer, guesses=guesses)
        counts = buffer.statistics
        assert buffer.close()
    assert live.peak <= places * RECORD and counts.peak_nbytes <= places * RECORD
    assert counts.hits + counts.late + counts.demands == counts.asked == 25 * LAYERS * 2
    assert counts.useful + counts.wasted + counts.stopped <= counts.preloads
    if guesses == "none":
        assert counts.preloads == 0 and counts.nbytes == counts.demands * RECORD
        least = buffer.least_bytes()
        assert least is not None and least <= counts.nbytes
    if places == len(KEYS):
        assert counts.evictions == 0


def test_without_guesses_it_does_what_the_replay_does(path: Path) -> None:
    from haversack.run._shelf import replay

    with ExpertStore.open(path) as store:
        buffer, _ = buffer_of(store, 7, "lru")
        run(buffer, chosen=1)
        told = replay(buffer.trace, lambda key: RECORD, 7 * RECORD, eviction("lru", LAYERS, EXPERTS))
        counts = buffer.statistics
        buffer.close()
    assert (counts.hits, counts.demands, counts.nbytes) == (told.hits, told.demands, told.nbytes)


def test_no_cache_reads_every_expert_every_time(path: Path) -> None:
    with ExpertStore.open(path) as store:
        buffer, _ = buffer_of(store, 7, keeps=False)
        run(buffer, count=10)
        counts = buffer.statistics
        buffer.close()
        assert store.bytes_read >= 10 * LAYERS * 2 * RECORD
    assert counts.demands == counts.asked and counts.hits == 0


def test_a_layer_that_needs_more_than_the_buffer_holds(path: Path) -> None:
    """All six experts of a layer, a buffer of two: read while the one before is used, in any order."""
    with ExpertStore.open(path) as store:
        buffer, live = buffer_of(store, 2)
        for order in (range(EXPERTS), reversed(range(EXPERTS))):
            buffer.need(1, [(1, expert) for expert in range(EXPERTS)])
            for expert in order:
                with buffer.use((1, expert)) as found:
                    assert np.array_equal(found["w"], matrix((1, expert)))
        buffer.close()
    assert live.peak <= 2 * RECORD


def test_right_guesses_hide_the_reading(path: Path) -> None:
    """At 4 MB/s an expert takes 3 ms to read; each layer computes for 12 ms."""
    seconds, computing = {}, threading.Event()
    for guesses in ("none", "right"):
        with ExpertStore.open(path, SlowStorage(mb_s=4)) as store:
            buffer, _ = buffer_of(store, 4)
            for token in tokens(6):
                for layer, experts in token:
                    buffer.need(layer, [(layer, expert) for expert in experts])
                    if guesses == "right" and layer + 1 < LAYERS:
                        buffer.guess([(layer + 1, expert) for expert in token[layer + 1][1]])
                    for expert in experts:
                        with buffer.use((layer, expert)):
                            computing.wait(0.006)
            seconds[guesses] = buffer.statistics.stall_s
            buffer.close()
    assert seconds["right"] < 0.7 * seconds["none"]


def test_wrong_guesses_are_called_off_even_under_way(path: Path) -> None:
    storage = FailingStorage(sound=20_000, stalls=True)  # the first page, the header, then no more
    with ExpertStore.open(path, storage) as store:
        buffer, live = buffer_of(store, 24)
        buffer.guess([(0, 0), (0, 1), (0, 2)])
        assert live.begun.wait(10)  # the first guess is under way
        buffer.need(0, [(0, 5)])
        assert buffer.reader.waiting == 1
        storage.release.set()
        with buffer.use((0, 5)) as found:
            assert np.array_equal(found["w"], matrix((0, 5)))
        counts = buffer.statistics
        buffer.close()
    assert (counts.preloads, counts.stopped, counts.demands) == (1, 1, 1)


def test_a_guess_called_off_and_then_chosen_is_there(path: Path) -> None:
    storage = FailingStorage(sound=20_000, stalls=True)
    with ExpertStore.open(path, storage) as store:
        buffer, live = buffer_of(store, 24)
        buffer.guess([(1, 0)])
        assert live.begun.wait(10)
        buffer.need(0, [(0, 5)])  # calls the guess off
        buffer.need(1, [(1, 0)])  # and takes that back
        storage.release.set()
        with buffer.use((1, 0)) as found:
            assert np.array_equal(found["w"], matrix((1, 0)))
        buffer.close()
    assert buffer.statistics.late == 1


def test_a_guess_is_made_where_it_is_worth_what_leaves() -> None:
    worth = Worth(chance=0.25)
    assert worth(0)  # nothing is known yet
    worth.load(0.010)
    worth.window(0.010)
    assert worth(0)  # half of the guesses right, all of a read saved
    for _ in range(40):
        worth.learn(0, chosen=False)
    assert worth.right(0) < 0.1 and not worth(0) and worth(1)
    for _ in range(200):
        worth.learn(0, chosen=True)
    assert worth(0)
    for _ in range(200):
        worth.window(0.001)  # storage ten times slower than computing
    assert not worth(0)
    assert Worth(chance=0.0)(3)


def test_a_guess_that_is_not_worth_it_evicts_nothing(path: Path) -> None:
    with ExpertStore.open(path) as store:
        buffer, _ = buffer_of(store, 2)
        buffer.worth = Worth(chance=0.9)
        buffer.worth.load(1.0)
        buffer.worth.window(1.0)
        buffer.need(0, [(0, 0), (0, 1)])
        for expert in (0, 1):
            with buffer.use((0, expert)):
                pass
        buffer.guess([(1, 0)])
        with buffer.use((0, 1)):  # still there
            pass
        assert buffer.statistics.preloads == 0 and buffer.statistics.hits == 1
        buffer.close()


def test_a_damaged_expert_is_found_before_use_and_others_go_on(path: Path, tmp_path: Path) -> None:
    with ExpertStore.open(path) as store:
        at = store.records[2, 3, ""].offset
    data = bytearray(path.read_bytes())
    data[at + 777] ^= 4
    damaged = tmp_path / "experts.store"
    damaged.write_bytes(data)
    with ExpertStore.open(damaged) as store:
        buffer, _ = buffer_of(store, 4)
        buffer.guess([(2, 3)])  # a damaged guess alone is no error
        buffer.need(2, [(2, 1), (2, 3)])
        with buffer.use((2, 1)) as found:
            assert np.array_equal(found["w"], matrix((2, 1)))
        with (
            pytest.raises(DamagedFileError, match="expert 3 of layer 2 was altered"),
            buffer.use((2, 3)),
        ):
            pass
        buffer.need(0, [(0, 0)])
        with buffer.use((0, 0)) as found:
            assert np.array_equal(found["w"], matrix((0, 0)))
        buffer.close()


@pytest.mark.parametrize("stalls", [True, False])
def test_a_storage_that_fails_ends_the_wait(path: Path, stalls: bool) -> None:
    storage = FailingStorage(sound=60_000, stalls=stalls)
    with ExpertStore.open(path, storage) as store:
        buffer, _ = buffer_of(store, 4, timeout_s=0.3)
        began = time.monotonic()
        with pytest.raises(UserError, match="gave nothing for 0.3 s" if stalls else "Input/output error"):
            run(buffer)
        assert time.monotonic() - began < 5
        assert buffer.close() is not stalls
        storage.release.set()


def test_names_that_are_kept_keep_no_memory(path: Path) -> None:
    with ExpertStore.open(path) as store:
        buffer, _ = buffer_of(store, 2)
        with buffer.use((0, 0)) as found:
            assert "w" in found
        assert not found
        buffer.close()
