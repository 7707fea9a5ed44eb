"""Frames of remote decoding: what is signed is heard, everything else is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.share import _protocol as wire

TOKEN = "a-token-of-enough-letters"
GREETING = wire.encode(wire.Greeting([1], True, bytes(16)))


def pair(token: str = TOKEN, greeting: bytes = GREETING, nonce: bytes = b"n" * 16) -> tuple[wire.Signer, ...]:
    return tuple(wire.Signer(token, greeting, nonce, device=device) for device in (True, False))


def message(round: int = 1) -> wire.Round:
    return wire.Round(7, round, 40, wire.pack_ids([1, 2, 3], 4096))


def test_messages_come_through_both_ways() -> None:
    device, server = pair()
    for number in range(1, 5):
        assert server.open(device.sign(message(number)), wire.FromDevice) == message(number)
    reply = wire.Reply(7, 1, 2, 9, 100, 50, 0.5, b"")
    assert device.open(server.sign(reply), wire.FromServer) == reply


def test_a_round_is_short() -> None:
    """16 bytes of signature and 2 a token, little else."""
    device, _ = pair()
    assert len(device.sign(wire.Round(2**32 - 1, 300, 4000, wire.pack_ids(range(5), 4096)))) <= 16 + 10 + 16


@given(place=st.integers(0, 10**6), change=st.integers(1, 255))
def test_an_altered_frame_is_refused(place: int, change: int) -> None:
    device, server = pair()
    frame = bytearray(device.sign(message()))
    frame[place % len(frame)] ^= change
    with pytest.raises(wire.ProtocolError, match="not signed"):
        server.open(bytes(frame), wire.FromDevice)


def test_repeated_left_out_and_turned_frames_are_refused() -> None:
    device, server = pair()
    first, second, third = (device.sign(message(number)) for number in (1, 2, 3))
    server.open(first, wire.FromDevice)
    for frame in (first, third):  # again, and without the one between
        with pytest.raises(wire.ProtocolError, match="not signed"):
            server.open(frame, wire.FromDevice)
    assert server.open(second, wire.FromDevice).round == 2
    with pytest.raises(wire.ProtocolError, match="not signed"):
        device.open(third, wire.FromDevice)  # its own, thrown back


@pytest.mark.parametrize(
    "other",
    [
        {"token": "another-token-of-letters"},
        {"token": ""},
        {"greeting": wire.encode(wire.Greeting([1], True, bytes(15) + b"x"))},
        {"greeting": wire.encode(wire.Greeting([1, 2], True, bytes(16)))},
        {"nonce": b"m" * 16},
    ],
    ids=["token", "no token", "server's number", "versions", "device's number"],
)
def test_what_another_connection_signed_is_refused(other: dict[str, object]) -> None:
    device, _ = pair()
    _, server = pair(**other)  # type: ignore[arg-type]
    with pytest.raises(wire.ProtocolError, match="not signed"):
        server.open(device.sign(message()), wire.FromDevice)


@given(payload=st.binary(max_size=64))
def test_signed_nonsense_is_no_message(payload: bytes) -> None:
    device, server = pair()
    frame = device._signature(b"d", 0, payload) + payload
    try:
        found = server.open(frame, wire.FromDevice)
    except wire.ProtocolError:
        return
    assert isinstance(found, wire.Open | wire.Round | wire.Close)


@pytest.mark.parametrize(
    "fields",
    [
        [5, 7, 1, 40],
        [5, 7, 1, 40, b"", 1],
        [5, -1, 1, 40, b""],
        [5, 7, 2**32, 40, b""],
        [5, 7, 1, 40, bytes(65)],
        [99, 7],
        {"session": 7},
    ],
)
def test_fields_that_are_missing_too_many_or_out_of_range(fields: object) -> None:
    with pytest.raises(wire.ProtocolError):
        wire.decode(msgspec.msgpack.encode(fields), wire.FromDevice)


@given(vocabulary=st.sampled_from([5, 4096, 1 << 16, (1 << 16) + 1, 151_936]), data=st.data())
def test_tokens_come_back(vocabulary: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, vocabulary - 1), max_size=40))
    packed = wire.pack_ids(ids, vocabulary)
    assert len(packed) == len(ids) * (2 if vocabulary <= 1 << 16 else 4)
    assert wire.unpack_ids(packed, vocabulary).tolist() == ids


@pytest.mark.parametrize(("data", "vocabulary"), [(b"\x01", 10), (b"\x0a\x00", 10), (bytes(6), 1 << 17)])
def test_what_are_no_tokens(data: bytes, vocabulary: int) -> None:
    with pytest.raises(ValueError, match="token"):
        wire.unpack_ids(data, vocabulary)


def test_ids_are_numbers_of_the_engine_s_kind() -> None:
    assert wire.unpack_ids(b"\x01\x00", 10).dtype == np.int32
