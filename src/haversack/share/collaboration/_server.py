"""A whole network behind one OpenAI-compatible address: every chat is a task for one algorithm."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any

from haversack.core._service import Limits, Request, Response, Service
from haversack.core.budget import Budget
from haversack.core.errors import UserError
from haversack.core.ledger import Ledger
from haversack.share._answers import DONE, event
from haversack.share._decide import asked_of
from haversack.share.collaboration._algorithm import Algorithm
from haversack.share.collaboration._network_file import NetworkEntry, network_of
from haversack.share.collaboration._session import Result, Task


def task_of(body: dict[str, Any], budget: Budget, privacy: str, most: int) -> Task:
    """The task of a chat request: its last question, the turns before as history. Raises UserError for a body
    that asks nothing, or asks for what a network does not do."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise UserError("messages is missing or no list of messages.", field="messages")
    if body.get("tools"):
        raise UserError("a network calls no tools; leave tools out.", field="tools")
    asked = asked_of(body)
    if not asked.text.strip():
        raise UserError("the messages ask nothing.", field="messages")
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    limit = most if limit is None else limit
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise UserError(f"max_tokens={limit} is no whole number of 1 or more.", field="max_tokens")
    return Task(asked.text, budget=budget, privacy=privacy, history=asked.history, most=min(limit, most))


class CollaborationServer:
    """Serves `algorithm` on a network. Raises UserError for what cannot run on it, and as core's Service."""

    def __init__(
        self,
        entry: NetworkEntry,
        algorithm: Algorithm,
        budget: Budget,
        *,
        privacy: str = "any",
        most: int = 256,
        ledger: Ledger | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
    ) -> None:
        self.entry, self.algorithm, self.budget = entry, algorithm, budget
        self.privacy, self.most, self.ledger = privacy, most, ledger
        asyncio.run(self._checked())
        routes = {("GET", "/v1/models"): self._models, ("POST", "/v1/chat/completions"): self._chat}
        self.service = Service(routes, host=host, port=port, token=token, limits=Limits(body_bytes=4 << 20))

    async def _checked(self) -> None:
        network, endpoints = network_of(self.entry)
        try:
            self.algorithm.check(network)
        finally:
            for endpoint in endpoints:
                await endpoint.close()

    def _models(self, request: Request) -> Response:
        listed = {"id": self.algorithm.name, "object": "model", "created": 0, "owned_by": "haversack"}
        return Response.of({"object": "list", "data": [listed]})

    def _chat(self, request: Request) -> Response:
        body = request.json()
        if not isinstance(body, dict):
            raise UserError("the body is no object.", field="body")
        task = task_of(body, self.budget, self.privacy, self.most)
        result = asyncio.run(self._answered(task))
        if not result.answer:
            why = f"nobody answered: {result.degraded}"
            said = {"message": why, "type": "server_error", "code": "no_answer"}
            return Response.of({"error": said}, 502)
        if body.get("stream"):
            chunks = [event(chunk) for chunk in _chunks(self.algorithm.name, result)]
            return Response(iter([*chunks, DONE]), content_type="text/event-stream", headers=_told(result))
        return Response(json.dumps(_whole(self.algorithm.name, result)).encode(), headers=_told(result))

    async def _answered(self, task: Task) -> Result:
        network, endpoints = network_of(self.entry)
        try:
            return await self.algorithm.go(task, network, self.ledger)
        finally:
            for endpoint in endpoints:
                await endpoint.close()


def _head(name: str, kind: str) -> dict[str, Any]:
    made = f"chatcmpl-{secrets.token_hex(8)}"
    return {"id": made, "object": kind, "created": int(time.time()), "model": name}


def _whole(name: str, result: Result) -> dict[str, Any]:
    message = {"role": "assistant", "content": result.answer}
    read = sum(pair[0] for pair in result.counts.tokens.values())
    written = sum(pair[1] for pair in result.counts.tokens.values())
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**_head(name, "chat.completion"), "choices": [choice], "usage": usage}


def _chunks(name: str, result: Result) -> list[dict[str, Any]]:
    head = _head(name, "chat.completion.chunk")
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": result.answer}, None),
        ({}, "stop"),
    ]
    return [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": why}]} for delta, why in deltas
    ]


def _told(result: Result) -> dict[str, str]:
    """Headers: what it took, and why it is not the algorithm's own answer where it is not."""
    degraded = "".join(letter if " " <= letter <= "~" else "?" for letter in result.degraded)
    told = {
        "x-haversack-calls": ", ".join(f"{node}={count}" for node, count in result.counts.calls.items()),
        "x-haversack-cost-usd": f"{result.counts.cost_usd:.6f}",
        "x-haversack-degraded": degraded,
    }
    return {name: value for name, value in told.items() if value}
