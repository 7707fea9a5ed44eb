"""The profile of a text's routing: probabilities, back-off, its file, and the guesses made from it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.run._paths import Profile, carried, choice_of, entropy_bits, key_width
from haversack.run._prediction import GateAhead, NoGuess, Paths

EXPERTS = 4


def routes_of(*paths: tuple[int, ...]) -> np.ndarray:
    """Tokens that choose one expert in each layer."""
    return np.array(paths, np.int32)[:, :, None]


SEEN = routes_of((0, 1, 2), (0, 1, 2), (0, 1, 3), (1, 1, 0), (2, 3, 3))


def test_probabilities_are_shares_of_what_followed() -> None:
    profile = Profile.of_routes(SEEN, EXPERTS, "m")
    assert profile.chances(2, [[0], [1]]).tolist() == [0, 0, 2 / 3, 1 / 3]
    assert profile.chances(2, [[1], [1]]).tolist() == [1, 0, 0, 0]
    assert profile.chances(1, [[0]]).tolist() == [0, 1, 0, 0]
    assert profile.chances(0, [[3], [3]]).tolist() == [0.6, 0.2, 0.2, 0]  # layer 0 sees another token


def test_what_was_not_seen_falls_back_to_one_layer_and_then_to_frequencies() -> None:
    profile = Profile.of_routes(SEEN, EXPERTS, "m")
    assert profile.chances(2, [[3], [1]]).tolist() == [0.25, 0, 0.5, 0.25]  # all that followed expert 1
    assert profile.chances(2, [[3], [0]]).tolist() == profile.frequencies[2].tolist() == [0.2, 0, 0.4, 0.4]
    assert profile.chances(1, [[3]]).tolist() == profile.frequencies[1].tolist()
    assert profile.chances(2, []).tolist() == profile.frequencies[2].tolist()


def test_several_experts_are_one_key_whatever_their_order() -> None:
    routes = np.array([[[0, 1], [2, 3], [1, 0]], [[1, 0], [3, 2], [1, 2]]], np.int32)
    profile = Profile.of_routes(routes, EXPERTS, "m")
    assert profile.width == 2
    assert profile.chances(2, [[0, 1], [3, 2]]).tolist() == [0.25, 0.5, 0.25, 0]
    assert (key_width(8, 2), key_width(64, 8), key_width(128, 1)) == (2, 1, 1)
    assert choice_of([5, 2, 9], 2) == (2, 5)


def test_entropy_and_concentration() -> None:
    assert entropy_bits(np.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])).tolist() == [2, 0, 0]
    profile = Profile.of_routes(SEEN, EXPERTS, "m")
    assert profile.record()["balanced_bits"] == 2
    assert all(0 <= bits <= math.log2(EXPERTS) for bits in profile.entropy_bits())
    many = routes_of(*[(0, 0)] * 96, *[(i % 4, 1) for i in range(4)])
    assert carried(many) == 0.96  # one of five paths


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_profile_s_file_gives_the_same_profile(data: st.DataObject) -> None:
    tokens, layers, chosen = (data.draw(st.integers(1, most)) for most in (30, 5, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    routes = np.stack(
        [[rng.permutation(EXPERTS)[:chosen] for _ in range(layers)] for _ in range(tokens)]
    ).astype(np.int32)
    profile = Profile.of_routes(routes, EXPERTS, "m")
    again = Profile.of_bytes(profile.to_bytes())
    assert again.to_bytes() == profile.to_bytes()
    for token in routes[:5]:
        for layer in range(layers):
            before = token[:layer].tolist()
            assert np.array_equal(again.chances(layer, before), profile.chances(layer, before))


def test_it_belongs_to_one_model(tmp_path) -> None:
    profile = Profile.of_routes(SEEN, EXPERTS, "m")
    profile.write(tmp_path / "profile.json")
    read = Profile.read(tmp_path / "profile.json")
    read.require("m", 3, EXPERTS)
    for model, layers, experts in (("other", 3, 4), ("m", 4, 4), ("m", 3, 8)):
        with pytest.raises(UserError, match="made of another model"):
            read.require(model, layers, experts)
    with pytest.raises(UserError, match="cannot be read"):
        Profile.read(tmp_path / "absent.json")
    with pytest.raises(UserError, match="needs calibration text"):
        Profile.of_routes(SEEN[:0], EXPERTS, "m")


def altered(**changes) -> bytes:
    return json.dumps({**json.loads(Profile.of_routes(SEEN, EXPERTS, "m").to_bytes()), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        altered(format=[2, 0]),
        altered(experts=0),
        altered(experts=2**40),
        altered(chosen=9),
        altered(width=2),
        altered(tokens=0),
        altered(layers=[]),
        altered(layers=[[[[0], [], [[1, 1]]]]]),  # layer 0 has nothing before it
        altered(layers=[[[[], [], [[9, 1]]]]]),
        altered(layers=[[[[], [], [[-1, 1]]]]]),
        altered(layers=[[[[], [], [[1, -5]]]]]),
        altered(layers=[[[[], [], [[1, 10**30]]]]]),
        altered(layers=[[[[], [], [[1, 1]]], [[], [], [[1, 1]]]]]),
        altered(layers=[[[[], [], [[1, 1]]]], [[[], [7], [[1, 1]]]]]),
    ],
)
def test_a_file_that_does_not_hold_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedFileError) as caught:
        Profile.of_bytes(data, "expert-profile.json")
    assert str(caught.value).startswith("expert-profile.json is damaged") and "\n" not in str(caught.value)


def test_guesses_follow_the_token_that_is_decoded() -> None:
    guesser = Paths(Profile.of_routes(SEEN, EXPERTS, "m"))
    assert guesser.likely(0) == [0, 1, 2]  # never expert 3
    for _ in range(2):  # the same for every token, whatever came before it
        guesser.chose(0, [0])
        assert guesser.likely(1) == [1]
        guesser.chose(1, [1])
        assert guesser.likely(2) == [2, 3]
        guesser.chose(2, [3])
        assert guesser.likely(0) == [0, 1, 2]
    nothing = NoGuess()
    nothing.chose(0, [0])
    assert nothing.likely(1) == []


def test_a_gate_one_layer_ahead() -> None:
    asked = []

    def gate(layer: int, x: np.ndarray) -> np.ndarray:
        asked.append(layer)
        return x[:EXPERTS] * layer

    guesser = GateAhead(gate, most=2)
    assert guesser.likely(1) == []  # nothing was seen yet
    guesser.chose(0, [3], np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    assert guesser.likely(1) == [1, 3]
    assert guesser.likely(0) == [] and asked == [1]  # the first layer will see another token
