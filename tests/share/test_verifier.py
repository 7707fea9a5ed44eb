"""Devices that break the rules, go away or fall silent: the server refuses, stays, and frees their slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.share import devices

from haversack.run import Engine, Limits, generate
from haversack.share import _protocol as wire

pytest.importorskip("fastapi")
pytest.importorskip("websockets")


opening, drafts = devices.opening, devices.drafts
PROMPT = [5, 9, 40, 7, 200, 3]
Device = Callable[..., Any]


@pytest.fixture(scope="module")
def verifying(serving: Any, tiny: Path) -> Iterator[Any]:
    with serving.serving(tiny, verify=True, token=devices.TOKEN, contexts=3) as server:
        yield server


@pytest.fixture
def device(verifying: Any) -> Device:
    """Makes devices that are welcome (unless `hello` says otherwise)."""

    def make(**hello: Any) -> Any:
        tokenizer = hello.pop("tokenizer", verifying.app.verifier.tokenizer)
        return devices.FakeDevice(verifying.verify_url, tokenizer, **hello)

    return make


@pytest.fixture(scope="module")
def plain(tiny: Path) -> list[int]:
    with Engine.open(tiny) as engine:
        answer = generate(engine, PROMPT, Limits(32, end=()))
        for _ in answer:
            pass
        return answer.tokens


def begun(one: Any, **fields: Any) -> None:
    """The text is open."""
    assert isinstance(one.hear(), wire.Welcome)
    one.say(opening(PROMPT, **fields))
    assert one.hear().length == len(PROMPT)


def idle(server: Any) -> bool:
    batch = server.app.batch
    return batch.state().running == 0 and len(batch._free) == batch.contexts


def test_rounds_as_they_should_be(device: Device, plain: list[int]) -> None:
    with device() as one:
        begun(one)
        one.say(drafts(6, plain[:4]))
        assert (reply := one.hear()).accepted == 4 and reply.token == plain[4]
        one.say(drafts(11, [plain[5], 1 + plain[6]], round=2))
        assert (reply := one.hear()).accepted == 1 and reply.token == plain[6]
        one.say(drafts(13, [], round=3))
        assert (reply := one.hear()).accepted == 0 and reply.token == plain[7]
        assert reply.first_us > 0 and reply.served_us > 0


def test_a_round_behind_the_opening_waits_for_it(device: Device, plain: list[int]) -> None:
    with device() as one:
        one.hear()
        one.say(opening(PROMPT))
        one.say(drafts(6, plain[:2]))
        assert isinstance(one.hear(), wire.Opened)
        assert one.hear().token == plain[2]


def test_the_same_round_again_gets_the_same_answer(device: Device, plain: list[int]) -> None:
    with device() as one:
        begun(one)
        for _ in range(3):  # the second comes while the first is verified, or after it
            one.say(drafts(6, plain[:4]))
        first = one.hear()
        one.say(drafts(6, plain[:4]))
        again = one.hear()
        assert again == first
        one.say(drafts(11, plain[5:7], round=2))
        following = one.hear()
        while following == first:
            following = one.hear()
        assert following.accepted == 2


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (drafts(6, [1], round=1), "round"),  # another one of the same number
        (drafts(11, [1], round=3), "round"),
        (drafts(11, [1], round=2**32 - 1), "round"),
        (drafts(10, [1], round=2), "start"),
        (drafts(12, [1], round=2), "start"),
        (drafts(11, [1], round=2, session=8), "session"),
        (drafts(11, [1] * 17, round=2), "length"),
        (wire.Round(7, 2, 11, b"\x01"), "ids"),
        (wire.Round(7, 2, 11, b"\xff\xff"), "ids"),
    ],
)
def test_a_round_that_is_out_of_turn_or_size(
    message: Any, code: str, device: Device, plain: list[int]
) -> None:
    with device() as one:
        begun(one)
        one.say(drafts(6, plain[:4]))
        one.hear()
        one.say(message)
        refused = one.hear()
        assert isinstance(refused, wire.Refused) and refused.code == code and refused.sentence.endswith(".")
        one.say(drafts(11, [], round=2))  # the text is as it was
        assert one.hear().token == plain[5]


def test_a_stale_round_is_dropped(device: Device, plain: list[int]) -> None:
    with device() as one:
        begun(one)
        for number, place in ((1, 0), (2, 1), (3, 2)):
            one.say(drafts(6 + place, [], round=number))
            one.hear()
        one.say(drafts(6, [], round=1))
        one.say(drafts(9, [], round=4))
        assert one.hear().round == 4


def test_no_more_drafts_than_the_answer_may_have(device: Device, plain: list[int]) -> None:
    with device() as one:
        begun(one, most=3)
        one.say(drafts(6, plain[:3]))
        assert one.hear().code == "length"
        one.say(drafts(6, plain[:2]))
        assert one.hear().accepted == 2
        one.say(drafts(9, [], round=2))
        assert one.hear().code == "length"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"begins": 0}, "cannot begin"),
        ({"begins": 7}, "cannot begin"),
        ({"begins": 3, "most": 3}, "are written"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"seed": 2**64 - 1}, "64 bits"),
    ],
)
def test_a_text_that_is_none(fields: dict[str, Any], said: str, device: Device) -> None:
    with device() as one:
        one.hear()
        one.say(opening(PROMPT, **fields))
        refused = one.hear()
        assert refused.code == "text" and said in refused.sentence and refused.over


def test_a_text_that_is_too_long_or_of_unknown_tokens(device: Device) -> None:
    with device() as one:
        one.hear()
        for ids in ([], [1] * 513, [300]):
            one.say(opening(ids, begins=max(1, len(ids))))
            assert one.hear().code == "text"


def test_a_repeated_frame_ends_the_connection(
    device: Device, plain: list[int], verifying: Any, serving: Any
) -> None:
    with device() as one:
        begun(one)
        frame = one.say(drafts(6, plain[:2]))
        one.hear()
        one.socket.send(frame)
        assert one.closed()[0] == wire.UNAUTHORIZED
    serving.until(lambda: idle(verifying))


@pytest.mark.parametrize("kind", ["forged", "empty", "short", "text", "altered"])
def test_frames_that_nobody_signed(
    kind: str, device: Device, plain: list[int], verifying: Any, serving: Any
) -> None:
    with device() as one:
        begun(one)
        good = one.signer.sign(drafts(6, plain[:2]))
        made = {
            "forged": bytes(16) + good[16:],
            "empty": b"",
            "short": b"\x00" * 15,
            "text": "hello",
            "altered": good[:-1] + bytes([good[-1] ^ 1]),
        }
        one.socket.send(made[kind])
        code, _ = one.closed()
        assert code == (wire.MALFORMED if kind == "text" else wire.UNAUTHORIZED)
    serving.until(lambda: idle(verifying))


@pytest.mark.parametrize("token", ["", "another-token-of-letters"])
def test_a_token_that_is_missing_or_wrong(token: str, device: Device) -> None:
    with device(token=token) as one:
        code, reason = one.closed()
        assert code == wire.UNAUTHORIZED and "not signed" in reason


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"tokenizer": bytes(32)}, "tokenizer"),
        ({"anchor": "ab" * 32, "family": "code"}, "family"),
        ({"version": 2}, "protocol"),
        ({"sampling": "luck"}, "sampling"),
        ({"sampling": "rejection", "draft": bytes(32)}, "draft"),
    ],
)
def test_who_does_not_fit_is_told_why(hello: dict[str, Any], code: str, device: Device) -> None:
    with device(**hello) as one:
        refused = one.hear()
        assert refused.code == code and refused.over
        assert one.closed()[0] == wire.FOREIGN


def test_a_first_message_that_is_none(verifying: Any) -> None:
    for frame in (b"", bytes(20), bytes(5000), b"\x93\x01\x02\x03" * 8):
        with devices.connect(verifying.verify_url + wire.PATH, compression=None) as raw:
            raw.recv(10)
            raw.send(frame)
            with pytest.raises(devices.ConnectionClosed) as caught:
                raw.recv(10)
            assert caught.value.rcvd.code == wire.MALFORMED


def test_who_is_refused_too_often_is_let_go(device: Device) -> None:
    with device() as one:
        begun(one)
        for _ in range(16):
            one.say(drafts(1, [1]))
            assert one.hear().code == "start"
        assert one.closed() == (wire.MALFORMED, "the device asked too often for what is refused.")


def test_a_device_that_goes_away_in_mid_verification(
    device: Device, plain: list[int], verifying: Any, serving: Any
) -> None:
    for late in (False, True):
        with device() as one:
            begun(one)
            assert not idle(verifying)
            one.say(drafts(6, plain[:16]))
            if late:
                time.sleep(0.02)
            one.vanish()
        serving.until(lambda: idle(verifying))
    with device() as one:  # and before its text is read
        one.hear()
        one.say(opening(list(range(1, 250)) * 2))
        one.vanish()
    serving.until(lambda: idle(verifying) and not verifying.app.verifier.devices)
    cache = verifying.app.batch.together.caches
    assert all(each.length == 0 for each in cache)


def test_a_slot_is_left_for_others(device: Device) -> None:
    """Of three contexts devices get two; who asks otherwise is answered."""
    with device() as one, device() as two, device() as three:
        begun(one)
        begun(two)
        three.hear()
        three.say(opening(PROMPT))
        refused = three.hear()
        assert refused.code == "busy" and refused.over
        one.say(wire.Close(7))
        time.sleep(0.05)
        three.say(opening(PROMPT))
        assert isinstance(three.hear(), wire.Opened)


def test_the_silent_are_let_go(serving: Any, tiny: Path, plain: list[int]) -> None:
    with serving.serving(tiny, verify=True, token=devices.TOKEN, idle_s=1.0) as server:
        with devices.FakeDevice(server.verify_url, server.app.verifier.tokenizer) as one:
            begun(one)
            for place in range(3):
                time.sleep(0.4)
                one.say(drafts(6 + place, [], round=1 + place))
                assert one.hear().token == plain[place]
            assert one.closed()[0] == wire.IDLE
        serving.until(lambda: idle(server))


def test_a_text_has_its_time(serving: Any, tiny: Path) -> None:
    with serving.serving(tiny, verify=True, token=devices.TOKEN, deadline_s=0.2) as server:
        with devices.FakeDevice(server.verify_url, server.app.verifier.tokenizer) as one:
            begun(one)
            time.sleep(0.25)
            one.say(drafts(6, []))
            refused = one.hear()
            assert refused.code == "deadline" and refused.over
        serving.until(lambda: idle(server))


def test_devices_hear_that_the_server_stops(serving: Any, tiny: Path) -> None:
    with (
        serving.serving(tiny, verify=True, token=devices.TOKEN) as server,
        devices.FakeDevice(server.verify_url, server.app.verifier.tokenizer) as one,
    ):
        begun(one)
        server.stop()
        assert one.hear().code == "stopping"
        assert one.closed()[0] == wire.STOPPING


def test_pages_of_other_sites_may_not_verify(serving: Any, tiny: Path) -> None:
    from websockets.exceptions import InvalidStatus

    with serving.serving(tiny, verify=True) as server:
        for origin, allowed in (("http://evil.example", False), (server.url, True)):
            try:
                with devices.connect(server.verify_url + wire.PATH, origin=origin) as one:
                    one.recv(10)
                    assert allowed
            except InvalidStatus as error:
                assert error.response.status_code == 403 and not allowed


def test_it_is_counted(device: Device, plain: list[int], verifying: Any) -> None:
    before = verifying.app.telemetry.text()
    with device() as one:
        begun(one)
        one.say(drafts(6, [*plain[:3], 1 + plain[3]]))
        one.hear()
        now = verifying.app.telemetry.text()

    def value(text: bytes, name: str) -> float:
        return next(
            float(line.rsplit(" ", 1)[1]) for line in text.decode().splitlines() if line.startswith(name)
        )

    for name, count in (("haversack_rounds_total", 1), ('haversack_drafts_total{accepted="yes"}', 3)):
        assert value(now, name) - value(before, name) == count
    assert value(now, "haversack_devices") >= 1
