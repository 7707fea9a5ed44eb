"""A server as the cloud's agent: real HTTP to a tiny model, counted and capped; a server that is gone."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from haversack.core.budget import Budget
from haversack.core.errors import HaversackError
from haversack.core.ledger import Ledger
from haversack.share._hera_agents import Prompted, Unreachable
from haversack.share._hera_baselines import Constant
from haversack.share._hera_endpoint import Asking, body_of
from haversack.share._hera_episodes import EpisodeBudget, run_episode
from haversack.share._hera_household import Household


@dataclass
class Plain:
    """The least client: one request, bytes of its body, a price a request."""

    url: str
    price: float = 0.002

    def ceiling(self, body: dict[str, Any], most: int) -> tuple[float, int]:
        return self.price, len(json.dumps(body).encode())

    async def chat(self, body: dict[str, Any], *, deadline_s: float, most: int) -> Any:
        data = json.dumps({**body, "model": "chatty"}).encode()

        def asked() -> bytes:
            request = urllib.request.Request(
                f"{self.url}/v1/chat/completions", data, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=deadline_s) as answer:
                received: bytes = answer.read()
                return received

        try:
            got = await asyncio.to_thread(asked)
        except (urllib.error.URLError, OSError) as error:
            raise HaversackError(f"no answer: {error}") from error
        meter = SimpleNamespace(cost_usd=self.price, sent_bytes=len(data), received_bytes=len(got))
        return SimpleNamespace(text=json.loads(got)["choices"][0]["message"]["content"], meter=meter)


@pytest.fixture(scope="module")
def server(tiny: Path, serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of the tiny model with a template that says only what the message says."""
    folder = tmp_path_factory.mktemp("steps") / "chatty"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text("{% for one in messages %}{{ one.content }}{% endfor %}")
    with serving.serving(folder) as server:
        yield server


@pytest.fixture
def asking(server: Any) -> Any:
    made = Asking(lambda: Plain(server.url))
    yield made
    made.close()


def test_a_server_acts_within_what_is_allowed_and_is_charged(asking: Asking) -> None:
    book = Ledger()
    env = Household(1, most_steps=3)
    one = Prompted(asking, asking.ceiling, "{state:.60s}")
    done = run_episode(env, one, one, Constant(1.0), ledger=book)
    assert [step.chosen for step in done.steps] == ["cloud"] * 3
    assert all(step.action in step.admissible for step in done.steps)
    assert book.total("cost_usd") == pytest.approx(0.006)
    assert book.total("uplink_bytes") > 0 and book.total("downlink_bytes") > 0
    assert all(step.latency_ms > 0 for step in done.steps)


def test_the_price_is_looked_at_before_the_server_is_asked(asking: Asking) -> None:
    book = Ledger()
    one = Prompted(asking, asking.ceiling, "{state:.60s}")
    budget = EpisodeBudget(limits=Budget(cost_usd=0.003))
    done = run_episode(Household(1, most_steps=2), one, one, Constant(1.0), budget=budget, ledger=book)
    assert [step.capped for step in done.steps] == [False, True]


def test_a_server_that_is_gone_is_unreachable() -> None:
    asking = Asking(lambda: Plain("http://127.0.0.1:9"), deadline_s=2.0)
    try:
        with pytest.raises(Unreachable, match="no answer"):
            asking("hello")
    finally:
        asking.close()


def test_what_is_asked_is_one_short_greedy_line() -> None:
    body = body_of("go?")
    assert body["temperature"] == 0 and body["stop"] == ["\n"] and body["messages"][0]["content"] == "go?"
