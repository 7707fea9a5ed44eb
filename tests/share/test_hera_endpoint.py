"""Servers as agents: real HTTP to a tiny model, counted and capped; the command with a served model on either
side; servers that are gone, refuse, or cannot chat."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from haversack.cli import _share_hera, main
from haversack.core._service import Response
from haversack.core.budget import Budget
from haversack.core.errors import HaversackError, UserError
from haversack.core.ledger import Ledger
from haversack.share._hera_agents import Prompted, Unreachable, walkthrough
from haversack.share._hera_baselines import Constant
from haversack.share._hera_endpoint import Asking, body_of, endpoint_agent
from haversack.share._hera_episodes import EpisodeBudget, read_traces, run_episode
from haversack.share._hera_household import Household


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


clouds = load("clouds")


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
    assert body_of("go?", plain=True)["prompt"] == "go?" and "messages" not in body_of("go?", plain=True)


@pytest.fixture(scope="module")
def small(serving: Any) -> Any:
    """The bundled `code-draft`, served; it has no chat template."""
    with serving.serving("code-draft") as server:
        yield server


def planner() -> Any:
    """A server that says the planner's actions for house 0, one a request."""
    actions = [action for _, action in walkthrough(Household(0))]
    return clouds.server(lambda body: actions.pop(0) if actions else "wait")


def said(line: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["share", *line, "--json"]) == code
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_a_bundled_model_without_a_template_is_an_agent(small: Any) -> None:
    book = Ledger()
    cloud = endpoint_agent(small.url)
    done = run_episode(Household(1, most_steps=2), cloud, cloud, Constant(1.0), ledger=book)
    assert [step.chosen for step in done.steps] == ["cloud", "cloud"]
    assert all(step.action in step.admissible for step in done.steps)
    assert book.total("uplink_bytes") > sum(len(step.text) for step in done.steps)


def test_record_learn_and_play_over_http(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces, router = tmp_path / "steps.jsonl", tmp_path / "steps.router"
    line = ["episodes", "--count", "1", "--device", small.url]
    with planner() as cloud:
        both = ["--router", "cloud", "--record", "both", "-o", str(traces)]
        recorded = said([*line, "--cloud", cloud.url, *both], capsys)
        assert recorded["success"] == 1.0 and recorded["cloud_share"] == 1.0
        assert len(cloud.bodies) == recorded["steps"]
        sent = sum(len(json.dumps(body)) for body in cloud.bodies) / 1024
        assert sent * 0.8 < recorded["spent"]["uplink_kib"] < 1.6 * sent + 1, "the cloud's bytes alone"
    steps = read_traces(traces)
    assert all(step.device_action in step.admissible for step in steps)
    learned = said(["learn-steps", str(traces), "-o", str(router)], capsys)
    assert learned["imitation"]["steps"] == len(steps) > 0
    with planner() as cloud:
        budget = ["--cloud", cloud.url, "--router", str(router), "--tau", "0", "--cloud-calls", "3"]
        played = said([*line, *budget], capsys)
    assert played["cloud_calls"] == 3 and len(cloud.bodies) == 3
    assert played["capped_steps"] == played["steps"] - 3


def test_nothing_leaves_in_private_or_past_a_budget(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_share_hera, "GAMES", 4)
    line = ["episodes", "--count", "1", "--router", "cloud"]
    with planner() as cloud:
        private = said([*line, "--cloud", cloud.url, "--privacy", "device"], capsys)
        assert private["cloud_calls"] == 0 and private["steps"] > 0 and not cloud.bodies
        capped = said([*line, "--cloud", cloud.url, "--uplink-kib", "4"], capsys)
        assert 0 < capped["spent"]["uplink_kib"] <= 4 and capped["capped_steps"] > 0
        stopped = said([*line, "--cloud", cloud.url, "--uplink-kib", "0", "--exhausted", "stop"], capsys)
        assert stopped["stopped"] == 1 and stopped["steps"] == 0
    gone = said([*line, "--cloud", cloud.url], capsys)
    assert gone["offline_steps"] == gone["steps"] > 0 and gone["spent"]["uplink_kib"] == 0


def test_servers_that_cannot_be_agents_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["episodes", "--count", "1", "--router", "cloud"]
    for status, what in ((401, "key"), (404, "address or model")):
        with clouds.server(lambda body, status=status: Response.of({"error": "no"}, status)) as cloud:
            refused = said([*line, "--device", "planner", "--cloud", cloud.url], capsys, 2)
        assert refused["field"] == "url" and what in refused["error"]
    device = said(["episodes", "--count", "1", "--device", cloud.url, "--router", "device"], capsys, 2)
    assert device["field"] == "device" and "reached" in device["error"]
    assert said([*line, "--device", "planner", "--cloud", "http://"], capsys, 2)["field"] == "url"
    keyless = ["--cloud", cloud.url, "--cloud-key-env", "HAVERSACK_NO_SUCH_KEY"]
    assert said([*line, "--device", "planner", *keyless], capsys, 2)["field"] == "key_env"


def test_a_refusal_that_passes_is_a_step_on_the_device() -> None:
    """Too long a prompt is no reason to end an episode."""
    with clouds.server(lambda body: Response.of({"error": {"message": "too long"}}, 400)) as cloud:
        with pytest.raises(Unreachable, match="400"):
            endpoint_agent(cloud.url).complete("hello")
        assert len(cloud.bodies) == 1
    with clouds.server(lambda body: Response.of({}, 403)) as cloud, pytest.raises(UserError):
        endpoint_agent(cloud.url, local=True).complete("hello")
