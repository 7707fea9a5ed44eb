"""The client of servers that nobody needs to trust: retries, deadlines, rest, bytes, usage."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.share import clouds

from haversack.core._service import Response
from haversack.core.errors import UserError
from haversack.share._endpoint import Address, Endpoint, EndpointError, Meter, Reply, retry_after
from haversack.share._prices import Price, judge_usage, prompt_ceiling, read_price

BODY = {"messages": [{"role": "user", "content": "What is 2 + 2?"}]}


def chat(url: str, body: Any = None, **given: Any) -> Reply:
    async def ask() -> Reply:
        end = Endpoint(Address(url, price=Price(1.0, 2.0), **given.pop("address", {})))
        try:
            return await end.chat(body or BODY, deadline_s=given.pop("deadline_s", 5.0), most=64, **given)
        finally:
            await end.close()

    return asyncio.run(ask())


def failure(url: str, **given: Any) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        chat(url, **given)
    return caught.value


def test_an_answer_with_its_bytes_tokens_and_money() -> None:
    with clouds.server(lambda body: "four, of course") as cloud:
        reply = chat(cloud.url)
    assert reply.text == "four, of course"
    assert cloud.bodies[0]["model"] == "toy", "the first model that the server names"
    usage = reply.meter.usage
    assert usage.source == "server" and usage.completion == len("four, of course") // 4
    assert reply.meter.cost_usd == pytest.approx((usage.prompt + 2 * usage.completion) / 1e6)
    assert reply.meter.sent_bytes > 400 and reply.meter.received_bytes > 400


def test_what_passes_is_tried_again_and_what_does_not_is_not() -> None:
    answers: list[Any] = [Response.of({}, 503), Response.of({"x": 1}), "yes"]
    with clouds.server(lambda body: answers.pop(0)) as cloud:
        reply = chat(cloud.url)
    assert (reply.text, reply.meter.tries, len(cloud.bodies)) == ("yes", 3, 3)
    with clouds.server(lambda body: Response.of({"error": "no"}, 422)) as cloud:
        error = failure(cloud.url)
    assert (error.kind, error.status, len(cloud.bodies)) == ("refused", 422, 1)


def test_each_failure_has_its_kind() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert failure(nobody, address={"model": "m", "tries": 2}).kind == "down"
    with clouds.server(lambda body: "late", delay_s=1.0) as cloud:
        assert failure(cloud.url, deadline_s=0.2).kind == "slow"
    busy = Response(b"{}", 429, headers={"Retry-After": "0"})
    with clouds.server(lambda body: busy) as cloud:
        assert failure(cloud.url).kind == "limited"
        assert len(cloud.bodies) == 3
    for junk in (b"<html>", b"[]", b'{"choices": []}', b'{"choices": [1]}', b"[" * 100_000):
        with clouds.server(lambda body, junk=junk: Response(junk)) as cloud:
            assert failure(cloud.url, address={"tries": 1}).kind == "broken"


def test_a_failing_server_rests_and_is_asked_again() -> None:
    async def ask() -> tuple[float, float]:
        with clouds.server(lambda body: Response.of({}, 500)) as cloud:
            end = Endpoint(Address(cloud.url, model="m", tries=3))
            with pytest.raises(EndpointError):
                await end.chat(BODY, deadline_s=10, most=8)
            rest = end.resting()
            cloud.answer = lambda body: "well again"
            await end.chat(BODY, deadline_s=10, most=8)
            after = end.resting()
            await end.close()
            return rest, after

    rest, after = asyncio.run(ask())
    assert 0 < rest <= 1.0 and after == 0.0


def test_a_stream_counts_and_breaks_with_its_kind() -> None:
    async def ask(url: str, **times: float) -> tuple[str, Meter, str]:
        end, meter, text, kind = Endpoint(Address(url)), Meter(), "", ""
        try:
            stream = end.stream(BODY, **{"first_s": 5.0, "deadline_s": 5.0, **times}, most=64, meter=meter)
            async for chunk in stream:
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content", "")
        except EndpointError as error:
            kind = error.kind
        await end.close()
        return text, meter, kind

    with clouds.server(lambda body: "a streamed answer") as cloud:
        text, meter, kind = asyncio.run(ask(cloud.url))
        assert cloud.bodies[0]["stream_options"] == {"include_usage": True}
    assert (text, kind, meter.usage.source) == ("a streamed answer", "", "server")
    assert meter.first_s is not None and meter.text_bytes >= len(text)
    with clouds.server(lambda body: "a streamed answer", break_after=2) as cloud:
        text, meter, kind = asyncio.run(ask(cloud.url))
    assert (text, kind) == ("a stre", "broken") and meter.usage.source == "estimated"
    with clouds.server(lambda body: "a streamed answer", stall_s=0.4) as cloud:
        assert asyncio.run(ask(cloud.url, deadline_s=0.6))[2] == "slow"
    with clouds.server(lambda body: "late", delay_s=1.0) as cloud:
        assert asyncio.run(ask(cloud.url, first_s=0.2))[2] == "slow"


@pytest.mark.parametrize(
    ("claimed", "prompt", "completion", "source"),
    [
        ({"prompt_tokens": 50, "completion_tokens": 20}, 50, 20, "server"),
        (None, 100, 20, "estimated"),
        ({}, 100, 20, "disputed"),
        ({"prompt_tokens": -5, "completion_tokens": 20}, 100, 20, "disputed"),
        ({"prompt_tokens": 10**9, "completion_tokens": 20}, 432, 20, "disputed"),
        ({"prompt_tokens": 50, "completion_tokens": 10**9}, 50, 64, "disputed"),
        ({"prompt_tokens": 0, "completion_tokens": 0}, 100, 20, "disputed"),
        ({"prompt_tokens": True, "completion_tokens": 2.5}, 100, 20, "disputed"),
        ({"prompt_tokens": "50", "completion_tokens": 20}, 100, 20, "disputed"),
    ],
)
def test_usage_is_believed_within_what_the_bytes_allow(
    claimed: Any, prompt: int, completion: int, source: str
) -> None:
    usage = judge_usage(claimed, sent=400, ceiling=432, text_bytes=80, most=64)
    assert (usage.prompt, usage.completion, usage.source) == (prompt, completion, source)


@given(
    st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70), st.integers(0, 10**6), st.integers(1, 4096)
)
def test_no_claim_costs_more_than_was_reserved(prompt: int, completion: int, sent: int, most: int) -> None:
    claimed = {"prompt_tokens": prompt, "completion_tokens": completion}
    text = most * 4  # what a server that keeps to its limit sends at most, and counts as
    usage = judge_usage(claimed, sent=sent, ceiling=sent + 64, text_bytes=text, most=most)
    assert 0 <= usage.prompt <= sent + 64 and 0 <= usage.completion <= most


def test_no_tokenizer_makes_more_tokens_than_the_ceiling() -> None:
    for text in ("hello " * 50, "日本語のテキスト" * 20, "🎒" * 40, "\n\n\t{}[]" * 30):
        body = {"messages": [{"role": "user", "content": text}]}
        assert prompt_ceiling(body) >= len(text.encode())


def test_waiting_by_the_servers_own_clock() -> None:
    theirs = datetime(1999, 1, 1, 12, tzinfo=UTC)  # a clock that disagrees with ours by decades
    said = {"retry-after": format_datetime(theirs + timedelta(seconds=7)), "date": format_datetime(theirs)}
    assert retry_after(said) == 7.0
    assert retry_after({"retry-after": "3"}) == 3.0
    assert retry_after({"retry-after": format_datetime(theirs)}) is None
    assert retry_after({"retry-after": "soon", "date": "x"}) is None
    assert retry_after({}) is None


def test_addresses_and_prices_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("localhost:8000", "ftp://x", "http://", "http://u:p@host"):
        with pytest.raises(UserError):
            Address(url)
    with pytest.raises(UserError) as caught:
        Address("http://h", key_env="NO_SUCH_KEY")
    assert caught.value.field == "key_env"
    monkeypatch.setenv("A_KEY", "sekrit")
    assert "sekrit" not in repr(Address("http://h", key_env="A_KEY", key="sekrit"))
    assert read_price("0.15,0.6") == Price(0.15, 0.6)
    for text in ("1", "a,b", "1,2,3", "-1,2", "nan,1", "inf,1"):
        with pytest.raises(UserError):
            read_price(text)
