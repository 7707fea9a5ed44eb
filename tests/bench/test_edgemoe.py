"""The bench of EdgeMoE: simulated time keeps to what it must, and absent data is a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.bench._harness import Run
from haversack.bench._rows import Unavailable
from haversack.bench.edgemoe import _toy, bench
from haversack.bench.edgemoe._events import Playback, bound_s, playback
from haversack.bench.edgemoe.quality import Frequent, guessed
from haversack.run._eviction import eviction, least_missed
from haversack.run._paths import Profile
from haversack.run._prediction import NoGuess, Paths

LAYERS, EXPERTS = 4, 6
KEYS = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
SIZES = {key: (1_000_000, 1_000_000) for key in KEYS}


def routes(tokens: int, chosen: int = 1, seed: int = 0) -> np.ndarray:
    """Choices that follow those of the layer before nine times of ten."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(tokens):
        token = [rng.permutation(EXPERTS)[:chosen]]
        for _ in range(1, LAYERS):
            follows = rng.random() < 0.9
            token.append((token[-1] + 1) % EXPERTS if follows else rng.permutation(EXPERTS)[:chosen])
        found.append(token)
    return np.array(found, np.int32)


def playing(name: str = "intent", guesses: bool = False, places: int = 8, **changes: float) -> Playback:
    profile = Profile.of_routes(routes(400, seed=1), EXPERTS, "m")
    given_ = {"mb_s": 100.0, "block_s": 0.004, "expert_s": 0.004, "chance": 1 / EXPERTS, **changes}
    return playback(
        places * 1_000_000,
        eviction("lru" if name == "none" else name, LAYERS, EXPERTS, profile.frequencies),
        Paths(profile) if guesses else NoGuess(),
        sizes=SIZES,
        keeps=name != "none",
        **given_,  # type: ignore[arg-type]
    )


def test_on_demand_every_expert_costs_its_read() -> None:
    run = playing("none")
    seconds = run.play(routes(10))
    assert seconds == pytest.approx(10 * LAYERS * (0.004 + 0.010 + 0.004))
    assert run.stall_s == pytest.approx(10 * LAYERS * 0.010)
    assert run.shelf.statistics.demands == 10 * LAYERS


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["intent", "printed", "frequency", "lru", "fifo"]),
    guesses=st.booleans(),
    places=st.integers(2, 24),
    seed=st.integers(0, 99),
    mb_s=st.sampled_from([10.0, 100.0, 1000.0]),
    chosen=st.integers(1, 2),
)
def test_no_way_beats_the_bound_or_takes_more_than_its_bytes(
    name: str, guesses: bool, places: int, seed: int, mb_s: float, chosen: int
) -> None:
    text = routes(30, chosen, seed)
    run = playing(name, guesses and chosen == 1, places, mb_s=mb_s)
    seconds = run.play(text)
    computing = 30 * LAYERS * (0.004 + 0.004 * chosen)
    trace = [(layer, int(e)) for token in text for layer, experts in enumerate(token) for e in experts]
    least = least_missed(trace, lambda key: 1_000_000, places * 1_000_000)
    assert seconds >= bound_s(least, mb_s * 1e6, computing) * (1 - 1e-9)
    assert seconds == pytest.approx(computing + run.stall_s)
    assert run.shelf.statistics.peak_nbytes <= places * 1_000_000
    again = playing(name, guesses and chosen == 1, places, mb_s=mb_s)
    assert again.play(text) == seconds


def test_right_guesses_hide_reads_where_storage_has_time() -> None:
    text = routes(60)
    guessing, waiting = playing(guesses=True, block_s=0.010), playing(block_s=0.010)
    assert guessing.play(text) < 0.92 * waiting.play(text)
    assert guessing.shelf.statistics.useful > guessing.shelf.statistics.wasted


def test_guesses_cost_nothing_where_it_has_none() -> None:
    text = routes(60)
    slow = {"mb_s": 5.0, "block_s": 0.0002, "expert_s": 0.0002}
    assert playing(guesses=True, **slow).play(text) <= 1.02 * playing(**slow).play(text)


def test_guesses_are_judged_on_layers_that_have_one_before() -> None:
    profile = Profile.of_routes(routes(800, seed=3), EXPERTS, "m")
    later = routes(200, seed=4)
    assert guessed(Paths(profile), later, 1) > 0.8
    assert guessed(Frequent(profile.frequencies), later, EXPERTS) == 1.0


def test_absent_data_is_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="tiny-shakespeare is not at hand"):
        _toy.text()
    with pytest.raises(Unavailable, match="not trained yet"):
        _toy.trained(Run(quick=True, seed=1, deadline=1e9))


def test_every_part_of_the_text_has_one_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "tinyshakespeare.txt").write_bytes(bytes(range(1, 201)) * 50)
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    train, calibrate, later = _toy.parts()
    assert len(train) == 9000 and len(calibrate) == len(later) == 500
    assert np.concatenate([train, calibrate, later]).tolist() == list(bytes(range(1, 201)) * 50)


def test_every_bar_of_the_specification_has_a_row() -> None:
    ids = {row.id for row in bench.rows}
    bars = {
        "tokens",
        "f32-50",
        "f32-550",
        "int4-50",
        "int4-550",
        "lru-50",
        "lru-550",
        "bound-50",
        "bound-550",
    }
    bars |= {"process-bytes", "buffer-bytes", "loss-later", "mean-bits", "guess-1", "guess-3", "hits-lru"}
    assert bars | {"hits-fifo", "paths", "real-size"} <= ids
