"""Remote decoding when things go wrong on the way: late, doubled and strange answers, outages, a server that
is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.share import devices

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.link import Segment
from haversack.run import Engine, Limits, Sampler, generate
from haversack.share import _protocol as wire
from haversack.simulate._channel import Channel

pytest.importorskip("fastapi")
pytest.importorskip("websockets")


PROMPT = "on the other hand and in the end"
COUNT = 32


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny: Path, models: Any) -> Path:
    folder: Path = models.shaken(tiny, tmp_path_factory.mktemp("drafts") / "small")
    return folder


@pytest.fixture(scope="module")
def verifying(serving: Any, tiny: Path) -> Iterator[Any]:
    with serving.serving(tiny, verify=True, token=devices.TOKEN, contexts=4) as server:
        yield server


@pytest.fixture(scope="module")
def plain(tiny: Path) -> list[int]:
    with Engine.open(tiny) as engine:
        answer = generate(engine, PROMPT, Limits(400, end=()))
        for _ in answer:
            pass
        return answer.tokens


def written(model: Path, url: str, text: str = "", count: int = COUNT) -> Any:
    decode = index.create("run", "decode", f"remote:server={url},token={devices.TOKEN}{text and ','}{text}")
    with Engine.open(model, decode=decode) as engine:
        answer = generate(engine, PROMPT, Limits(count, end=()), Sampler())
        for _ in answer:
            pass
        return answer


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("ws://").split(":")
    return host, int(port)


def test_answers_that_come_late(verifying: Any, small: Path, plain: list[int]) -> None:
    """Every third is kept back until its round is asked for again, and then both come."""
    held: list[Any] = []

    def meddle(message: Any) -> list[Any]:
        if isinstance(message, wire.Reply) and message.round % 3 == 1:
            held.append(message)
            return held[-2:] if held.count(message) == 2 else []
        return [message]

    with devices.between(verifying, meddle) as between:
        found = written(small, between.url, "timeout_s=0.6,adaptive=none,length=3")
    assert found.tokens == plain[:COUNT]
    assert found.drafting.repeated >= 2 and found.drafting.stale >= 2 and between.connections == 1


def test_answers_that_come_twice_and_out_of_order(verifying: Any, small: Path, plain: list[int]) -> None:
    said: list[Any] = []

    def meddle(message: Any) -> list[Any]:
        if not isinstance(message, wire.Reply):
            return [message]
        said.append(message)
        other = msgspec.structs.replace(message, session=message.session ^ 1)
        return [said[max(0, len(said) - 3)], other, message, message, said[0]]

    with devices.between(verifying, meddle) as between:
        found = written(small, between.url, "adaptive=none,length=3")
    assert found.tokens == plain[:COUNT]
    assert found.drafting.stale > found.drafting.stats()["rounds"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accepted": 17}, "accepts 17 of"),
        ({"token": 288}, "with token 288"),
        ({"logs": b"12345678"}, "8 bytes"),
        (None, "not signed"),
    ],
)
def test_answers_that_cannot_be(
    change: dict[str, Any] | None, said: str, verifying: Any, small: Path
) -> None:
    def meddle(message: Any) -> list[Any]:
        if not isinstance(message, wire.Reply):
            return [message]
        return [bytes(40) if change is None else msgspec.structs.replace(message, **change)]

    with devices.between(verifying, meddle) as between, pytest.raises(UserError, match=said):
        written(small, between.url)


def test_a_server_that_lets_go_in_the_middle(verifying: Any, small: Path, plain: list[int]) -> None:
    """The text so far is sent again, and goes on with the same tokens."""
    seen = [0]

    def closing(message: Any) -> bool:
        seen[0] += isinstance(message, wire.Reply)
        return isinstance(message, wire.Reply) and seen[0] in (3, 6)

    with devices.between(verifying, lambda message: [message], closing=closing) as between:
        found = written(small, between.url, "timeout_s=10,adaptive=none,length=3")
    assert found.tokens == plain[:COUNT] and between.connections == 3
    stats = found.drafting.stats()
    assert stats["reopened"] == 2 and stats["unverified"] == 0 and stats["offline_s"] > 0
    assert len(found.drafting.notices) == 4


def test_a_server_that_forgets_the_text(verifying: Any, small: Path, plain: list[int]) -> None:
    seen = [0]

    def meddle(message: Any) -> list[Any]:
        if isinstance(message, wire.Reply):
            seen[0] += 1
            if seen[0] in (2, 4):
                return [wire.Refused(message.session, "session", "there is no such text.", True)]
        return [message]

    with devices.between(verifying, meddle) as between:
        found = written(small, between.url, "adaptive=none,length=3")
    assert found.tokens == plain[:COUNT] and found.drafting.reopened == 2 and between.connections == 1


def test_a_server_that_always_forgets_is_given_up(verifying: Any, small: Path) -> None:
    def meddle(message: Any) -> list[Any]:
        if isinstance(message, wire.Reply):
            return [wire.Refused(message.session, "session", "there is no such text.", True)]
        return [message]

    with devices.between(verifying, meddle) as between, pytest.raises(UserError, match="again and again"):
        written(small, between.url)


OUTAGE = [Segment(0.6, 10, 10), Segment(1.5, 0, 10), Segment(60, 10, 10)]


def test_an_outage_is_waited_for(verifying: Any, small: Path, plain: list[int]) -> None:
    with Channel(OUTAGE, address(verifying.verify_url)) as channel:
        url = "ws://{}:{}".format(*channel.address)
        found = written(small, url, "timeout_s=0.3,adaptive=none,length=1,patience_s=30", count=150)
    assert found.tokens == plain[:150] and found.stop == "max-tokens"
    assert found.drafting.unverified == 0 and found.seconds > 1.5


def test_an_outage_stops_where_that_is_asked_for(verifying: Any, small: Path, plain: list[int]) -> None:
    with Channel(OUTAGE, address(verifying.verify_url)) as channel:
        url = "ws://{}:{}".format(*channel.address)
        found = written(small, url, "timeout_s=0.2,adaptive=none,length=1,offline=stop", count=200)
    assert found.stop == "offline" and 0 < len(found.tokens) < 200
    assert found.tokens == plain[: len(found.tokens)]
    assert "stopping here" in found.drafting.notices[-1]


def test_alone_is_said_and_verified_again_afterwards(
    verifying: Any, small: Path, tiny: Path, plain: list[int]
) -> None:
    """What was written alone stays; behind it are the tokens the server's model would write there."""
    url = {}
    with Channel([Segment(60, 10, 4)], address(verifying.verify_url)) as channel:
        url["value"] = "ws://{}:{}".format(*channel.address)
        text = f"remote:server={url['value']},token={devices.TOKEN},timeout_s=0.3,adaptive=none,length=2"
        decode = index.create("run", "decode", f"{text},offline=alone")
        with Engine.open(small, decode=decode) as engine:
            answer = generate(engine, PROMPT, Limits(400, end=()), Sampler())
            for count, _ in enumerate(answer, start=1):
                if count == 20:
                    channel.cut()
                if answer.drafting.unverified and not answer.drafting.reopened:
                    time.sleep(0.01)  # as a larger draft would take
    counts = answer.drafting
    assert counts.unverified > 0 and counts.reopened >= 1
    first, end = counts.alone[0]
    assert answer.tokens[:first] == plain[:first] and 0 < first < end < len(answer.tokens)
    prompt = [*engine.model.tokenizer().encode(PROMPT), *answer.tokens[: counts.alone[-1][1]]]
    with Engine.open(tiny) as large:
        rest = generate(large, prompt, Limits(len(answer.tokens) - counts.alone[-1][1], end=()))
        for _ in rest:
            pass
    assert answer.tokens[counts.alone[-1][1] :] == rest.tokens
    assert "UNVERIFIED" in counts.words() and "going on alone" in counts.notices[0]


def test_alone_from_the_beginning(small: Path) -> None:
    """No server at all: the draft's own tokens, every one flagged."""
    with Engine.open(small) as engine:
        own = generate(engine, PROMPT, Limits(COUNT, end=()))
        for _ in own:
            pass
    found = written(small, "ws://127.0.0.1:9", "offline=alone")
    assert found.tokens == own.tokens
    assert found.drafting.unverified == COUNT and found.drafting.alone == [[0, COUNT]]


def test_a_server_that_is_killed_between_rounds(
    serving: Any, tiny: Path, small: Path, plain: list[int]
) -> None:
    """Another one takes its port: the device goes on with it."""
    words = ["--verify", "--token", devices.TOKEN, "--contexts", "2"]
    found: list[Any] = []
    with serving.Command(tiny, "--port", "0", *words) as first:
        port = first.port
        text = f"remote:server=ws://127.0.0.1:{port},token={devices.TOKEN},timeout_s=0.5,adaptive=none"
        decode = index.create("run", "decode", f"{text},length=1,patience_s=60")
        enough = threading.Event()

        def write() -> None:
            with Engine.open(small, decode=decode) as engine:
                answer = generate(engine, PROMPT, Limits(60, end=()), Sampler())
                for count, _ in enumerate(answer, start=1):
                    if count == 10:
                        enough.set()
                    time.sleep(0.005)
                found.append(answer)

        writing = threading.Thread(target=write)
        writing.start()
        assert enough.wait(30)
        first.process.kill()
        first.process.wait()
        with serving.Command(tiny, "--port", str(port), *words):
            writing.join(60)
    (answer,) = found
    assert answer.tokens == plain[:60] and answer.drafting.reopened >= 1
