"""Simultaneous perturbation: known numbers, exact restore, unbiased slopes, replay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import UserError
from haversack.train._network import Slice
from haversack.train.gradient._spsa import (
    CENTRE,
    PIECE,
    SCALE,
    Spsa,
    normals,
    ones,
    pieces,
    thresholds,
    words,
)

MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as Salmon et al. (2011) define it."""
    x, k, mask = list(counter), list(key), (1 << 64) - 1
    for _ in range(10):
        first, second = MULTIPLIERS[0] * x[0], MULTIPLIERS[1] * x[2]
        x = [second >> 64 ^ x[1] ^ k[0], second & mask, first >> 64 ^ x[3] ^ k[1], first & mask]
        k = [(value + step) & mask for value, step in zip(k, WEYL, strict=True)]
    return x


def test_words_are_philox_of_the_documented_counter():
    assert philox([0] * 4, [0] * 2)[0] == 0x16554D9ECA36314C  # the authors' known answer
    seed, step, tensor = 20260, 7, 3
    found = words(seed, step, tensor, 5, 9)
    assert found.tolist() == [philox([1 + i // 4, 0, step, 0], [seed, tensor])[i % 4] for i in range(5, 14)]
    even = thresholds(seed, step, tensor, 3, 6)
    for i, value in enumerate(even, 3):
        word = philox([1 + i // 16, 0, step, 1], [seed, tensor])[i // 4 % 4]
        assert value == ((word >> 16 * (i % 4) & 0xFFFF) + 0.5) / 65536


def test_a_word_becomes_a_number_as_documented():
    word = words(1, 2, 3, 0, 400)
    assert ones(word.copy()).tolist() == [int(value).bit_count() for value in word]
    whole = [2 * (65536 * (int(w) >> 16).bit_count() + (int(w) & 0xFFFF)) - CENTRE for w in word]
    assert np.array_equal(normals(1, 2, 3, 0, 400), np.array(whole, np.float32) * SCALE)


def test_numbers_are_nearly_normal():
    u = np.concatenate([normals(0, step, 0, 0, 1 << 16) for step in range(16)]).astype(np.float64)
    assert abs(u.mean()) < 4 / np.sqrt(u.size)
    assert abs(u.var() - 1) < 4 * np.sqrt(2 / u.size)
    assert (u**4).mean() - 3 == pytest.approx(-0.04, abs=0.03)
    for bound, share in ((1.0, 0.31731), (2.0, 0.04550), (3.0, 0.00270)):
        assert (np.abs(u) > bound).mean() == pytest.approx(share, abs=0.0015)


@given(st.integers(0, 3 * PIECE), st.integers(1, 300))
@settings(max_examples=20, deadline=None)
def test_a_piece_holds_the_numbers_of_the_whole(start, count):
    whole = normals(9, 1, 4, start - start % 7, count + start % 7)
    assert np.array_equal(normals(9, 1, 4, start, count), whole[start % 7 :])
    whole = thresholds(9, 1, 4, start - start % 7, count + start % 7)
    assert np.array_equal(thresholds(9, 1, 4, start, count), whole[start % 7 :])


@pytest.mark.parametrize("restore", ["grid", "copy"])
def test_slope_of_a_quadratic_is_exact(restore):
    w = {"w": np.random.default_rng(0).standard_normal(10)}
    spsa = Spsa(w, eps=1e-3, seed=5, restore=restore)
    for _ in range(50):
        want = w["w"] @ spsa.direction("w")
        found = spsa.estimate_and_update(lambda: 0.5 * float(w["w"] @ w["w"]), rate=0.0)
        assert found.g == pytest.approx(want, abs=1e-9)


def test_slope_times_direction_is_the_gradient_on_average():
    w, draws = np.random.default_rng(1).standard_normal(10), 100_000
    u = normals(0, 0, 0, 0, 10 * draws).reshape(draws, 10).astype(np.float64)
    slopes = (0.5 * np.square(w + 1e-3 * u).sum(1) - 0.5 * np.square(w - 1e-3 * u).sum(1)) / 2e-3
    estimates = slopes[:, None] * u
    error = estimates.std(axis=0) / np.sqrt(draws)
    assert np.all(np.abs(estimates.mean(axis=0) - w) < 3 * error)
    assert estimates.var(axis=0).sum() == pytest.approx(11 * (w @ w), rel=0.02)


def test_slope_is_that_of_finite_differences_in_every_coordinate():
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((6, 4)), rng.standard_normal((3, 6))
    x, tensors = rng.standard_normal((8, 4)), {"first": first, "second": second}

    def loss() -> float:
        return float(np.square(np.tanh(x @ first.T) @ second.T).mean())

    spsa = Spsa(tensors, eps=1e-4, seed=0, restore="copy")
    slope = 0.0
    for name, array in tensors.items():
        direction = spsa.direction(name)
        for place in np.ndindex(array.shape):
            old, sides = array[place], []
            for side in (1, -1):
                array[place] = old + side * 1e-5
                sides.append(loss())
            array[place] = old
            slope += (sides[0] - sides[1]) / 2e-5 * direction[place]
    assert spsa.estimate_and_update(loss, rate=0.0).g == pytest.approx(slope, rel=1e-5)


def network(seed: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Tensors of odd sizes and scales: zeros, large numbers, a view that is not contiguous."""
    rng = np.random.default_rng(seed)
    return {
        "kernel": rng.standard_normal((5, 3, 3, 3)).astype(dtype),
        "zero": np.zeros(7, dtype),
        "large": (30 * rng.standard_normal((40, 9))).astype(dtype),
        "rows": rng.standard_normal((6, 20, 4)).astype(dtype)[:, ::2],
        "long": (1e-2 * rng.standard_normal(PIECE + 5)).astype(dtype),
        "one": np.array(0.5, dtype),
    }


def bits(tensors: dict[str, np.ndarray]) -> bytes:
    return b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())


@pytest.mark.parametrize("restore", ["grid", "copy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moving_and_restoring_changes_no_bit(restore, dtype):
    tensors = network(3, dtype)
    before = {name: array.copy() for name, array in tensors.items()}
    spsa = Spsa(tensors, eps=0.02, seed=1, restore=restore)
    if restore == "copy":
        assert bits(tensors) == bits(before)
    for name, array in tensors.items():  # the grid's only change, once
        digits = 24 if dtype is np.float32 else 53
        assert np.abs(array - before[name]).max() <= (np.abs(before[name]).max() + 0.16) * 2.0**-digits
    start = bits(tensors)
    for path in ((1, -1, 0), (-1, 1, 0), (1, 0), (-1, 0)):
        for side in path:
            spsa.move(side)
            if side:
                for name, array in tensors.items():
                    moved = (array.astype(np.float64) - before[name]) / 0.02
                    size = 2e-6 * (np.abs(before[name]).max() / 0.02 + 8)
                    assert np.allclose(moved, side * spsa.direction(name), atol=size)
        assert bits(tensors) == start
        spsa.skip()


def test_a_broken_pass_restores():
    tensors = network(4)
    spsa = Spsa(tensors, eps=1e-2, seed=1)
    start = bits(tensors)

    def broken() -> float:
        if spsa.at == -1:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        spsa.estimate_and_update(broken, 0.1)
    assert bits(tensors) == start and spsa.at == 0 and spsa.step == 0
    found = spsa.estimate_and_update(lambda: float("nan"), 0.1)
    assert found.g is None and spsa.skipped == 1 and len(spsa.log) == 0
    assert bits(tensors) == start


def trained(tensors, restore, steps, clip=None):
    spsa = Spsa(tensors, eps=1e-2, seed=7, restore=restore, clip=clip)
    run(spsa, steps)
    return spsa


def run(spsa, steps):
    def loss() -> float:
        if spsa.step % 5 == 3:
            return float("inf")
        return sum(float(np.square(array).mean()) for array in spsa.tensors.values())

    for _ in range(steps):
        spsa.estimate_and_update(loss, rate=1e-3)


@pytest.mark.parametrize("restore", ["grid", "copy"])
def test_a_log_makes_the_trained_numbers_again(restore):
    tensors = network(5)
    spsa = trained(tensors, restore, 14)
    assert spsa.skipped == 3 and spsa.log.nbytes == 24 * 11
    again = network(5)
    Spsa(again, eps=1e-2, seed=7, restore=restore).replay(spsa.log)
    assert bits(again) == bits(tensors)
    other = network(5)
    Spsa(other, eps=1e-2, seed=8, restore=restore).replay(spsa.log)
    assert bits(other) != bits(tensors)


@pytest.mark.parametrize("restore", ["grid", "copy"])
def test_a_killed_training_goes_on_with_the_same_bits(restore):
    whole = network(6)
    log = trained(whole, restore, 12).log
    tensors = network(6)
    first = trained(tensors, restore, 6)
    state = {name: array.copy() for name, array in first.state().items()}
    second = Spsa(tensors, eps=1e-2, seed=7, restore=restore)
    second.set_state(state)
    run(second, 6)
    assert bits(tensors) == bits(whole)
    assert np.array_equal(second.log, log)


def test_the_grid_grows_with_its_numbers():
    w = {"w": np.full(100, 1e-3, np.float32)}
    spsa = Spsa(w, eps=1e-3, seed=0)
    for _ in range(20):
        spsa.update(-50.0, 0.02)
    assert np.abs(w["w"]).max() > 1
    start = w["w"].copy()
    spsa.move(1)
    spsa.move(-1)
    spsa.move(0)
    assert np.array_equal(w["w"], start)


def test_updates_below_a_step_of_the_grid_are_not_lost():
    w = {"w": np.ones(1 << 16, np.float32)}
    spsa = Spsa(w, eps=1e-3, seed=0)
    step = 2.0**-23
    u = spsa.direction("w").astype(np.float64)
    spsa.update(1.0, 0.25 * step)
    moved = (w["w"].astype(np.float64) - 1) / step
    assert set(np.unique(moved)) <= {-2, -1, 0, 1, 2}
    assert (moved * u).mean() == pytest.approx(-0.25, abs=0.01)
    assert abs(moved.mean()) < 0.01


@pytest.mark.parametrize("restore", ["grid", "copy"])
def test_a_part_moves_alone(restore):
    array = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    before, part = array.copy(), Slice(1, (0, 2, 5))
    spsa = Spsa({"w": array}, eps=1e-2, seed=0, restore=restore, parts={"w": part})
    start = array.copy()
    spsa.move(1)
    assert np.all(part.of(array) != part.of(start))
    assert np.array_equal(array[:, [1, 3, 4]], before[:, [1, 3, 4]])
    spsa.move(-1)
    spsa.move(0)
    assert np.array_equal(array, start) and spsa.numbers == 36
    spsa.update(1.0, 0.1)
    change = (part.of(array) - part.of(start)) / -0.1
    assert np.allclose(change, normals(0, 0, 0, 0, 36).reshape(4, 3, 3), atol=1e-5)
    assert np.array_equal(array[:, [1, 3, 4]], before[:, [1, 3, 4]])


def test_clipping_bounds_the_slope():
    w = {"w": np.full(3, 100.0)}
    spsa = Spsa(w, eps=1e-3, seed=0, clip=2.0)
    found = [spsa.estimate_and_update(lambda: float(w["w"] @ w["w"]), 0.0).g for _ in range(20)]
    assert set(found) == {2.0, -2.0}


def test_declared_memory():
    tensors = network(0)
    size = sum(array.nbytes for array in tensors.values())
    assert Spsa(tensors, eps=1e-2, seed=0).nbytes == 0
    copied = Spsa(tensors, eps=1e-2, seed=0, restore="copy")
    assert copied.nbytes == size and copied.scratch_nbytes == 32 * PIECE
    assert max(part.size for _, part in pieces(tensors["long"])) == PIECE


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"eps": 0.0}, "eps"),
        ({"eps": -1e-3}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": 1e-7}, "eps"),
        ({"clip": 0.0}, "clip"),
        ({"seed": -1}, "seed"),
        ({"restore": "none"}, "restore"),
        ({"tensors": {"w": np.ones(3, np.float16)}}, "w"),
        ({"tensors": {"w": np.ones(3, np.int8)}}, "w"),
        ({"tensors": {"w": np.array([1.0, np.nan])}}, "w"),
        ({"tensors": {"w": np.broadcast_to(np.float32(1), (3,))}}, "w"),
    ],
)
def test_what_cannot_be_perturbed_is_refused(changed, field):
    given_ = {"tensors": {"w": np.ones(3, np.float32)}, "eps": 1e-3, "seed": 0, **changed}
    with pytest.raises(UserError) as error:
        Spsa(given_.pop("tensors"), **given_)
    assert error.value.field == field


def test_logs_of_other_trainings_are_refused():
    spsa = trained(network(0), "copy", 5)
    for log in (np.zeros(3), spsa.log[::-1], np.concatenate([spsa.log, spsa.log])):
        with pytest.raises(UserError):
            Spsa(network(0), eps=1e-2, seed=7, restore="copy").replay(log)
