"""The server between a device and a cloud: decisions, budgets, privacy, failures, the ledger."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.servers import running
from tests.share import clouds

from haversack.core._service import Response
from haversack.core.budget import Budget
from haversack.core.errors import UserError
from haversack.core.ledger import Ledger
from haversack.share._decide import asked_of
from haversack.share._prices import Price
from haversack.share.route import RouteOptions, RouteServer

MAIL = "jane.doe@example.com"
PRICE = Price(1.0, 10.0)


def echo(body: dict[str, Any]) -> str:
    return f"cloud heard: {clouds.said(body)}"


@contextlib.contextmanager
def routing(device: Any, cloud: Any, **options: Any) -> Iterator[RouteServer]:
    """A router in a thread between two servers."""
    given = {
        "policy": "cloud",
        "cloud_price": PRICE,
        "port": 0,
        "deadline_s": 10.0,
        "grace_s": 2.0,
        **options,
    }
    made = RouteServer(RouteOptions(device.url, None if cloud is None else cloud.url, **given))
    try:
        with running(made):
            yield made
    finally:
        made.close()


@pytest.fixture
def device() -> Iterator[Any]:
    with clouds.server(lambda body: f"device heard: {clouds.said(body)}") as made:
        yield made


@pytest.fixture
def cloud() -> Iterator[Any]:
    with clouds.server(echo) as made:
        yield made


def ask(server: RouteServer, text: Any = "hello", headers: Any = None, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    content: str = response.json()["choices"][0]["message"]["content"]
    return content


def where(response: httpx.Response) -> str:
    return response.headers["x-haversack-answered-by"]


def streamed(server: RouteServer, text: str, **more: Any) -> tuple[str, list[dict[str, Any]], httpx.Response]:
    body = {"messages": [{"role": "user", "content": text}], "stream": True, **more}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    said = "".join(
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ())
    )
    return said, chunks, response


def test_personal_data_leaves_as_placeholders_and_returns(device: Any, cloud: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with routing(device, cloud, ledger=path) as server:
        response = ask(server, f"write to {MAIL}")
        assert text_of(response) == f"cloud heard: write to {MAIL}"
        said, _, _ = streamed(server, f"write to {MAIL}")
        assert said == f"cloud heard: write to {MAIL}"
    assert where(response) == "cloud" and response.headers["x-haversack-hidden"] == "EMAIL=1"
    assert all(MAIL not in json.dumps(body) for body in cloud.bodies) and len(cloud.bodies) == 2
    ledger = Ledger(path)
    assert ledger.total("cost_usd") > 0 and ledger.total("uplink_bytes") > 800
    assert MAIL not in path.read_text() and "write" not in path.read_text()


def test_the_official_client_works_with_tools_and_streams(device: Any) -> None:
    def call(body: dict[str, Any]) -> dict[str, Any]:
        arguments = json.dumps({"to": body["messages"][0]["content"].split()[-1]})
        function = {"name": body["tools"][0]["function"]["name"], "arguments": arguments}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        }

    tool = {"type": "function", "function": {"name": "send", "parameters": {"type": "object"}}}
    with clouds.server(call) as cloud, routing(device, cloud) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["auto", "device", "cloud"]
        made = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": f"mail {MAIL}"}], tools=[tool]
        )
    function = made.choices[0].message.tool_calls[0].function
    assert function.name == "send" and json.loads(function.arguments) == {"to": MAIL}
    assert MAIL not in json.dumps(cloud.bodies)


@pytest.mark.parametrize("level", ["header", "budget", "picture", "model"])
def test_what_may_not_leave_stays(device: Any, cloud: Any, level: str) -> None:
    budget = Budget(privacy="device") if level == "budget" else Budget()
    headers = {"x-haversack-privacy": "device"} if level == "header" else None
    picture = [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
    with routing(device, cloud, budget=budget) as server:
        more = {"model": "device"} if level == "model" else {}
        response = ask(server, picture if level == "picture" else "secret", headers, **more)
        assert where(response) == "device"
        loose = ask(server, "secret", {"x-haversack-privacy": "any"})
        assert ask(server, "x", {"x-haversack-privacy": "open"}).status_code == 400
    assert len(cloud.bodies) == (0 if level == "budget" else 1)
    assert where(loose) == ("device" if level == "budget" else "cloud")


def test_money_is_never_overspent_and_the_rest_of_a_task_is_the_devices(device: Any, cloud: Any) -> None:
    """A task of many steps whose budget is used up in its middle."""
    with routing(device, cloud, budget=Budget(cost_usd=0.004), max_tokens=64) as server:
        found = [where(ask(server, f"step {step}: " + "x" * 200)) for step in range(20)]
        spent = server.ledger.total("cost_usd")
    assert found[0] == "cloud" and found[-1] == "device"
    assert "cloud" not in found[found.index("device") :], "once used up it stays so"
    assert 0 < spent <= 0.004
    assert all(body["max_tokens"] <= 64 for body in cloud.bodies)


def test_a_used_up_budget_stops_cleanly_where_that_is_asked(device: Any, cloud: Any) -> None:
    with routing(device, cloud, budget=Budget(uplink_kib=1.5), exhausted="stop") as server:
        found = [ask(server, "y" * 50).status_code for _ in range(4)]
        refused = ask(server)
    assert found[0] == 200 and refused.status_code == 402
    assert (
        refused.json()["error"]["code"] == "budget_exhausted"
        and refused.json()["error"]["param"] == "uplink_kib"
    )
    assert not device.bodies


def test_a_lying_cloud_cannot_break_the_budget(device: Any) -> None:
    lie = {"prompt_tokens": 10**12, "completion_tokens": 10**12}
    with (
        clouds.server(echo, usage=lie) as cloud,
        routing(device, cloud, budget=Budget(cost_usd=0.01)) as server,
    ):
        for _ in range(12):
            ask(server, "z" * 100, max_tokens=40)
    assert 0 < server.ledger.total("cost_usd") <= 0.01
    assert any("disputed" in entry.what for entry in server.ledger.entries)


@pytest.mark.parametrize("trouble", ["down", "busy", "broken", "slow"])
@pytest.mark.parametrize("stream", [False, True])
def test_when_the_cloud_fails_the_device_answers(device: Any, trouble: str, stream: bool) -> None:
    answers = {
        "busy": lambda body: Response(b"{}", 429, headers={"Retry-After": "30"}),
        "broken": lambda body: Response(b"<html>"),
        "slow": echo,
        "down": echo,
    }
    delay = 2.0 if trouble == "slow" else 0.0
    with clouds.server(answers[trouble], delay_s=delay) as cloud:
        if trouble == "down":
            cloud.service.stop(0.1)
        with routing(device, cloud, budget=Budget(latency_ms=600)) as server:
            if stream:
                said, _, response = streamed(server, "help")
            else:
                response = ask(server, "help")
                said = text_of(response)
            assert said == "device heard: help"
            assert where(response) == "device" and "cloud" in response.headers["x-haversack-why"]
            asked = len(cloud.bodies)
            ask(server, "again")
            if trouble == "busy":
                assert len(cloud.bodies) == asked, "a cloud that asked us to wait is left alone"


def test_a_stream_that_breaks_ends_with_an_error_and_is_booked(device: Any) -> None:
    with (
        clouds.server(lambda body: "a long answer", break_after=2) as cloud,
        routing(device, cloud) as server,
    ):
        said, chunks, _ = streamed(server, "go")
    entries = server.ledger.entries
    assert said == "a long" and chunks[-1]["error"]["code"] == "broken_off"
    assert any("broken" in entry.what for entry in entries)


def test_a_cascade_asks_the_cloud_only_when_the_device_is_unsure(cloud: Any) -> None:
    for logs, expected in ((-0.01, "device"), (-2.0, "cloud"), (None, "cloud")):
        with clouds.server(lambda body: "mine", logs=logs) as device:
            with routing(device, cloud, policy="cascade", tau=0.8) as server:
                response = ask(server, "sure?")
                assert where(response) == expected
                assert response.json()["choices"][0].get("logprobs") is None
                said, chunks, _ = streamed(server, "sure?", stream_options={"include_usage": True})
            assert said == ("mine" if expected == "device" else "cloud heard: sure?")
            assert chunks[-1]["usage"]["completion_tokens"] > 0
    with clouds.server(lambda body: "mine", logs=-2.0) as device, clouds.server(echo) as gone:
        gone.service.stop(0.1)
        with routing(device, gone, policy="cascade") as server:
            assert text_of(ask(server)) == "mine"
        assert len(device.bodies) == 1, "the first answer is kept"


def test_a_router_decides_by_its_threshold(device: Any, cloud: Any, tmp_path: Path) -> None:
    from haversack.share._router_files import save_router

    path = tmp_path / "length.router"
    save_router(
        path, {"kind": "query", "form": "length", "threshold": 0.5}, {"lengths": [5.0, 10.0, 15.0, 20.0]}
    )
    with routing(device, cloud, policy="router", router=path) as server:
        assert where(ask(server, "short")) == "device"
        assert where(ask(server, "a question that is longer than most")) == "cloud"
        assert "p=" in ask(server, "short").headers["x-haversack-why"]
    with routing(device, cloud, policy="router", router=path, threshold=0.0) as server:
        assert where(ask(server, "short")) == "cloud"


def test_without_a_cloud_there_is_the_device(device: Any) -> None:
    with routing(device, None, policy="cascade") as server:
        assert where(ask(server)) == "device"
        assert ask(server, model="cloud").status_code == 404
        assert ask(server, model="gpt").json()["error"]["code"] == "model_not_found"


def test_requests_that_are_none_are_refused(device: Any, cloud: Any) -> None:
    with routing(device, cloud) as server:
        url = f"{server.url}/v1/chat/completions"
        for data in (b"{", b"[]", b"{}", b'{"messages": []}', b'{"messages": [1]}', b'{"messages": "x"}'):
            assert httpx.post(url, content=data).status_code == 400
        for more in ({"n": 0}, {"max_tokens": "many"}, {"stream": 1}, {"tools": {}}, {"stream_options": []}):
            assert ask(server, **more).status_code == 400
        assert httpx.get(f"{server.url}/nothing").status_code == 404
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
        assert "haversack_routed" in httpx.get(f"{server.url}/metrics").text or not cloud.bodies
        assert httpx.post(url, json={}, headers={"origin": "https://evil.example"}).status_code == 403
    assert not cloud.bodies and not device.bodies


def test_a_device_that_refuses_is_passed_on(cloud: Any) -> None:
    refusal = Response.of({"error": {"message": "only text", "code": "no"}}, 400)
    with clouds.server(lambda body: refusal) as device, routing(device, cloud, policy="device") as server:
        response = ask(server)
    assert response.status_code == 400 and "only text" in response.json()["error"]["message"]


def test_a_pack_is_a_device(tiny: Path, cloud: Any) -> None:
    class Folder:
        url = str(tiny)

    with routing(Folder(), cloud, policy="device") as server:
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert response.status_code in (200, 400), response.text  # 400: this model has no chat template
        assert server.record()["planned_mib"] > 0


def test_options_that_do_not_hold() -> None:
    for wrong in (
        {"policy": "magic"},
        {"policy": "router"},
        {"tau": 1.5},
        {"exhausted": "cry"},
        {"max_tokens": 0},
        {"cloud": "http://h", "budget": Budget(cost_usd=1.0)},
    ):
        with pytest.raises(UserError):
            RouteOptions("http://d", **wrong)
    with pytest.raises(UserError):
        RouteServer(RouteOptions("http://d", host="0.0.0.0", port=0))


def test_what_a_router_sees_of_an_agents_task() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    body = {
        "tools": [{"type": "function", "function": {"name": "look"}}],
        "messages": [
            {"role": "user", "content": "find the key"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "a desk"},
        ],
    }
    asked = asked_of(body)
    assert asked == ("find the key", (("find the key", "look({})"), ("a desk", "")), ("look",))
    plain = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    plain["messages"].append({"role": "user", "content": [{"type": "text", "text": "c"}]})
    assert asked_of(plain) == ("c", (("a", "b"),), ())
