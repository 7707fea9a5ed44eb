"""Servers for tests that behave as told: right, slow, down, busy, broken, lying."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from haversack.core._service import Request, Response, Service

Answer = Callable[[dict[str, Any]], Any]


def said(body: dict[str, Any]) -> str:
    """The last message's text."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else json.dumps(content)


class Server:
    """An OpenAI-compatible server in a thread. `answer` gives the text (or a message, or a Response) for a
    body; `usage`: what it claims, None counts truly; `delay_s` before it answers; `pieces`: characters of a
    chunk of a stream; `logs`: the log probability that it tells of each token."""

    def __init__(self, answer: Answer, **behaviour: Any) -> None:
        self.answer = answer
        self.behaviour: dict[str, Any] = {
            "usage": None,
            "delay_s": 0.0,
            "pieces": 3,
            "break_after": None,
            "stall_s": 0.0,
            "logs": None,
            **behaviour,
        }
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        routes = {
            ("GET", "/v1/models"): lambda request: Response.of({"data": [{"id": "toy"}]}),
            ("POST", "/v1/chat/completions"): self._chat,
        }
        self.service = Service(routes)
        self.url = self.service.url

    def _chat(self, request: Request) -> Response:
        body = request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        time.sleep(self.behaviour["delay_s"])
        answer = self.answer(body)
        if isinstance(answer, Response):
            return answer
        message = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
        text = message.get("content") or ""
        usage = self.behaviour["usage"]
        if usage is None:
            usage = {"prompt_tokens": max(1, len(json.dumps(body["messages"])) // 4)}
            usage["completion_tokens"] = max(1, len(text) // 4)
        if body.get("stream"):
            return Response(self._events(message, usage), content_type="text/event-stream")
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        if self.behaviour["logs"] is not None and body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "x", "logprob": self.behaviour["logs"]}]}
        return Response.of({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})

    def _events(self, message: dict[str, Any], usage: Any) -> Iterator[bytes]:
        text, size = message.get("content") or "", self.behaviour["pieces"]
        head = {"id": "c", "object": "chat.completion.chunk"}
        for sent, at in enumerate(range(0, len(text), size), start=1):
            delta = {"content": text[at : at + size]}
            yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if self.behaviour["break_after"] == sent:
                raise RuntimeError("the server breaks here")
            time.sleep(self.behaviour["stall_s"])
        yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield _event({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(record).encode() + b"\n\n"


@contextlib.contextmanager
def server(answer: Answer, **behaviour: Any) -> Iterator[Server]:
    """A server that runs until the context ends."""
    made = Server(answer, **behaviour)
    made.service.start()
    try:
        yield made
    finally:
        made.service.stop(1.0)
