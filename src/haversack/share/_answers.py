"""Answers as OpenAI's clients read them: whole bodies, and chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from haversack.run._jobs import Drawn, Job

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
FINISH = {
    "max-tokens": "length",
    "context": "length",
    "end-of-text": "stop",
    "stop-text": "stop",
}
"""Why an answer ended by itself -> finish_reason."""
LINE_ENDS = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x85, 0x2028, 0x2029))
"""Characters that some readers of lines end a line at, and how JSON may write them instead."""

Json = dict[str, Any]


def event(record: Json) -> bytes:
    """One server-sent event: one line, also for a client that takes more than CR and LF for a line's end."""
    data = msgspec.json.encode(record)
    if not data.isascii():
        for end, written in LINE_ENDS:
            data = data.replace(end, written)
    return b"data: " + data + b"\n\n"


def usage(jobs: Sequence[Job], prompts: int) -> Json:
    """Tokens read and written; `prompts` of the jobs have a prompt of their own."""
    each = max(1, len(jobs) // max(prompts, 1))
    read = sum(len(job.ask.prompt) for job in jobs[::each])
    written = sum(len(job.tokens) for job in jobs)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(job.cached for job in jobs[::each])},
    }


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes that a token stands for; for one without any, its name or its number."""
    data: bytes | None = tokenizer.bytes_of(token)
    if data:
        return data
    return str(tokenizer._library.id_to_token(token) or f"<{token}>").encode()


class Form(Protocol):
    """How one endpoint words its answers; `index` is the choice."""

    def begin(self, index: int) -> bytes: ...
    def chunk(self, index: int, drawn: Drawn) -> bytes: ...
    def last(self, index: int, job: Job) -> bytes: ...
    def count(self, jobs: Sequence[Job]) -> bytes: ...
    def whole(self, jobs: Sequence[Job]) -> Json: ...


class _Words:
    """What both endpoints share. `prompts`: texts asked for at once; `include_usage`: chunks have the
    field."""

    chunks = whole_object = prefix = ""

    def __init__(self, model: str, tokenizer: Any, *, prompts: int = 1, include_usage: bool = False) -> None:
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.include_usage = include_usage
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def _record(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _chunk(self, choice: Json) -> bytes:
        record = self._record(self.chunks, [choice])
        if self.include_usage:
            record["usage"] = None
        return event(record)

    def count(self, jobs: Sequence[Job]) -> bytes:
        """The chunk of the usage, when it was asked for."""
        if not self.include_usage:
            return b""
        return event({**self._record(self.chunks, []), "usage": usage(jobs, self.prompts)})


class Completions(_Words):
    """/v1/completions. `echoes`: what each choice's text begins with."""

    chunks = whole_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, tokenizer: Any, echoes: Sequence[str], **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.echoes = list(echoes)
        self._offsets = [len(echo) for echo in echoes]

    def begin(self, index: int) -> bytes:
        """The echo, when there is one."""
        echo = self.echoes[index]
        return self._chunk(self._choice(index, echo, None, None)) if echo else b""

    def chunk(self, index: int, drawn: Drawn) -> bytes:
        log_probabilities = self._log_probabilities(index, [drawn]) if drawn.logged else None
        if not drawn.text and log_probabilities is None:
            return b""
        return self._chunk(self._choice(index, drawn.text, log_probabilities, None))

    def last(self, index: int, job: Job) -> bytes:
        return self._chunk(self._choice(index, "", None, FINISH[job.stop or "stop-text"]))

    def whole(self, jobs: Sequence[Job]) -> Json:
        choices = []
        for index, job in enumerate(jobs):
            logged = self._log_probabilities(index, job.drawn) if job.ask.top is not None else None
            choices.append(
                self._choice(index, self.echoes[index] + job.text, logged, FINISH[job.stop or "stop-text"])
            )
        return {**self._record(self.whole_object, choices), "usage": usage(jobs, self.prompts)}

    def _choice(self, index: int, text: str, logged: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": logged, "finish_reason": reason}

    def _log_probabilities(self, index: int, drawn: Sequence[Drawn]) -> Json:
        made: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for one in drawn:
            if one.token is not None:
                made["tokens"].append(self._text(one.token))
                made["token_logprobs"].append(one.log_probability)
                top = {self._text(token): value for token, value in one.top}
                made["top_logprobs"].append({**top, self._text(one.token): one.log_probability})
                made["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(one.text)
        return made

    def _text(self, token: int) -> str:
        data = token_bytes(self.tokenizer, token)
        try:
            return data.decode()
        except UnicodeDecodeError:  # a part of a character, as OpenAI writes it
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Chats(_Words):
    """/v1/chat/completions. `parsers`: one for each choice, that tells calls of tools from text (None: no
    tools were given)."""

    chunks, whole_object, prefix = "chat.completion.chunk", "chat.completion", "chatcmpl"

    def __init__(
        self, model: str, tokenizer: Any, parsers: Sequence[Any] | None = None, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self.parsers = parsers
        self._called: dict[int, int] = {}

    def begin(self, index: int) -> bytes:
        return self._chunk(self._choice(index, {"role": "assistant", "content": ""}, None, None))

    def chunk(self, index: int, drawn: Drawn) -> bytes:
        logged = self._log_probabilities([drawn]) if drawn.logged else None
        if self.parsers is None:
            if not drawn.text and logged is None:
                return b""
            return self._chunk(self._choice(index, {"content": drawn.text}, logged, None))
        text = self.parsers[index].add(drawn.text)
        made = b""
        if text or logged is not None:
            made = self._chunk(self._choice(index, {"content": text}, logged, None))
        return made + self._calls(index)

    def last(self, index: int, job: Job) -> bytes:
        made, reason = b"", FINISH[job.stop or "stop-text"]
        if self.parsers is not None:
            text = self.parsers[index].finish()
            if text:
                made = self._chunk(self._choice(index, {"content": text}, None, None))
            made += self._calls(index)
            if self.parsers[index].calls:
                reason = "tool_calls"
        return made + self._chunk(self._choice(index, {}, None, reason))

    def _calls(self, index: int) -> bytes:
        """Chunks of the calls that became complete since the last time."""
        assert self.parsers is not None
        calls = self.parsers[index].calls
        begun = self._called.get(index, 0)
        self._called[index] = len(calls)
        made = b""
        for number in range(begun, len(calls)):
            call = {"index": number, **_call(calls[number])}
            made += self._chunk(self._choice(index, {"tool_calls": [call]}, None, None))
        return made

    def whole(self, jobs: Sequence[Job]) -> Json:
        choices = []
        for index, job in enumerate(jobs):
            reason, text, calls = FINISH[job.stop or "stop-text"], job.text, []
            if self.parsers is not None:
                text = self.parsers[index].add(text) + self.parsers[index].finish()
                calls = [_call(call) for call in self.parsers[index].calls]
            message: Json = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                message |= {"content": text.strip() or None, "tool_calls": calls}
                reason = "tool_calls"
            logged = self._log_probabilities(job.drawn) if job.ask.top is not None else None
            choices.append({"index": index, "message": message, "logprobs": logged, "finish_reason": reason})
        return {**self._record(self.whole_object, choices), "usage": usage(jobs, self.prompts)}

    def _choice(self, index: int, delta: Json, logged: Json | None, reason: str | None) -> Json:
        return {"index": index, "delta": delta, "logprobs": logged, "finish_reason": reason}

    def _log_probabilities(self, drawn: Sequence[Drawn]) -> Json:
        content = [
            {
                **self._token(one.token, one.log_probability),
                "top_logprobs": [self._token(token, value) for token, value in one.top],
            }
            for one in drawn
            if one.token is not None
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, log_probability: float) -> Json:
        data = token_bytes(self.tokenizer, token)
        return {"token": data.decode("utf-8", "replace"), "logprob": log_probability, "bytes": list(data)}


def _call(call: Json) -> Json:
    arguments = msgspec.json.encode(call["arguments"]).decode()
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call["name"], "arguments": arguments},
    }
