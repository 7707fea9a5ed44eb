"""From a request to what the batch is asked, with the limits of this server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models._chat import merged_ends
from haversack.run._engine import Engine
from haversack.run._generate import Limits, prompt_tokens
from haversack.run._jobs import Adjustments, Ask
from haversack.run._sampler import Sampler
from haversack.share._answers import Chats, Completions
from haversack.share._errors import ApiError
from haversack.share._requests import (
    MOST_PROMPTS,
    MOST_TEXTS,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    JsonFormat,
    Sampling,
    SchemaFormat,
    TextFormat,
    several,
)
from haversack.share._tools import Calls, Schemas, plain
from haversack.share.serve import Options

I32 = npt.NDArray[np.int32]
COMPLETION_TOKENS = 16
"""OpenAI's default of /v1/completions."""
_STEP = 0x9E3779B97F4A7C15
_SEEDS = (1 << 63) - 1


class Asker:
    """Words requests for one model. `template`: its chat template, None when it has none."""

    def __init__(self, engine: Engine, tokenizer: Any, template: Any, name: str, options: Options) -> None:
        self.engine, self.tokenizer, self.template = engine, tokenizer, template
        self.name, self.options = name, options
        self.context = engine.context_length
        self.schemas = Schemas(tokenizer)
        self.chat_ends: tuple[int, ...] = engine.model.end_of_text
        if template is not None:
            self.chat_ends = merged_ends(self.chat_ends, template.end_tokens(tokenizer))

    def completion(self, request: CompletionRequest) -> tuple[list[Ask], Completions, bool]:
        """What to ask for a completion, how to word it, and whether all has one prompt."""
        self._check(request)
        choices = request.n or 1
        if request.best_of not in (None, choices):
            raise ApiError(400, "best_of may only equal n.", param="best_of", code="unsupported_parameter")
        if request.echo and request.logprobs is not None:
            raise ApiError(
                400,
                "echo and logprobs together are not supported.",
                param="echo",
                code="unsupported_parameter",
            )
        texts = several(request.prompt, "prompt", MOST_PROMPTS)
        prompts = [self._prompt(text, "prompt") for text in texts]
        most = self._most(request.max_tokens or COMPLETION_TOKENS, "max_tokens")
        limits = Limits(most, _stops(request), () if request.ignore_eos else None)
        asks = [
            ask
            for prompt in prompts
            for ask in self._choices(request, prompt, limits, choices, request.logprobs)
        ]
        shown = [text if isinstance(text, str) else self.tokenizer.decode(text) for text in texts]
        echoes = [text if request.echo else "" for text in shown for _ in range(choices)]
        form = Completions(
            self.name, self.tokenizer, echoes, prompts=len(prompts), include_usage=_counts(request)
        )
        return asks, form, len(prompts) == 1

    def chat(self, request: ChatRequest) -> tuple[list[Ask], Chats]:
        """What to ask for a chat, and how to word it."""
        self._check(request)
        if self.template is None:
            raise ApiError(
                400,
                f"{self.name} has no chat template, so it was not trained to chat; use /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        calls = Calls.of(request, self.template)
        if calls is not None and request.response_format not in (None, TextFormat()):
            raise ApiError(
                400,
                "response_format and tools together are not supported; give tool_choice none for an answer.",
                param="response_format",
                code="unsupported_parameter",
            )
        prompt = self._chat_prompt(request, calls)
        most = self._most(
            request.max_completion_tokens or request.max_tokens,
            "max_completion_tokens" if request.max_completion_tokens else "max_tokens",
        )
        schema = _wanted_schema(request) if calls is None else calls.schema
        constraint = None
        if schema is not None:
            if request.stop:
                raise ApiError(
                    400,
                    "stop would cut the JSON short; give one or the other.",
                    param="stop",
                    code="invalid_value",
                )
            room = min(most, self.context - len(prompt) + 1)
            constraint = self.schemas.constraint(schema, self.chat_ends, room)
        shown = self.template.shown_tokens(self.tokenizer) if calls is not None else ()
        limits = Limits(most, _stops(request), () if request.ignore_eos else self.chat_ends, shown)
        top = (request.top_logprobs or 0) if request.logprobs else None
        if request.top_logprobs and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs.", param="top_logprobs", code="invalid_value")
        choices = request.n or 1
        asks = self._choices(request, prompt, limits, choices, top, constraint)
        parsers = None if calls is None else [calls.parser() for _ in range(choices)]
        return asks, Chats(self.name, self.tokenizer, parsers, include_usage=_counts(request))

    def _chat_prompt(self, request: ChatRequest, calls: Calls | None) -> I32:
        """The conversation as the template words it, in tokens."""
        messages = [plain(message, "refusal") for message in request.messages]
        try:
            text = self.template.render(messages, tools=None if calls is None else calls.tools)
            tokens = self.tokenizer.encode(text + ("" if calls is None else calls.opening), special=False)
        except UserError as error:
            raise ApiError(400, str(error), param=error.field or "messages", code="invalid_value") from error
        return self.checked_length(np.asarray(tokens, np.int32), "messages")

    def embedding(self, request: EmbeddingRequest) -> list[Ask]:
        """What to ask for embeddings, one for each text."""
        check_dimensions(request.dimensions, self.engine.architecture.width)
        texts = several(request.input, "input", MOST_TEXTS)
        deadline = time.monotonic() + self.options.deadline_s
        return [Ask(self._prompt(text, "input"), deadline=deadline, embed=True) for text in texts]

    def _check(self, request: Sampling) -> None:
        if request.stream_options is not None and not request.stream:
            raise ApiError(400, "stream_options needs stream.", param="stream_options", code="invalid_value")

    def _prompt(self, text: str | Sequence[int], param: str) -> I32:
        """The tokens of a prompt, checked against the limits."""
        try:
            if isinstance(text, str):
                tokens = prompt_tokens(self.engine, self.tokenizer, text)
            else:
                tokens = np.asarray(text, np.int32)
                if len(tokens) == 0 or int(tokens.max()) >= self.engine.architecture.vocabulary:
                    raise UserError(
                        f"{param} must hold tokens 0 to {self.engine.architecture.vocabulary - 1}."
                    )
        except (UserError, OverflowError) as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from error
        return self.checked_length(tokens, param)

    def checked_length(self, tokens: I32, param: str) -> I32:
        """`tokens` when they are not too many. Raises ApiError with both lengths."""
        most = min(self.options.max_prompt or self.context, self.context)
        if len(tokens) > most:
            raise ApiError(
                400,
                f"the prompt has {len(tokens)} tokens and this server takes {most}.",
                param=param,
                code="context_length_exceeded",
            )
        return tokens

    def _most(self, wanted: int | None, param: str) -> int:
        """The tokens an answer may have. Raises ApiError for more than the server allows."""
        most = min(self.options.max_tokens or self.context, self.context)
        if wanted is not None and wanted > most:
            raise ApiError(
                400,
                f"{param}={wanted} is not supported (this server allows 1 to {most}).",
                param=param,
                code="invalid_value",
            )
        return wanted or most

    def _choices(
        self,
        request: Sampling,
        prompt: I32,
        limits: Limits,
        choices: int,
        top: int | None,
        constraint: Any = None,
    ) -> list[Ask]:
        """One ask for each choice, with seeds of their own."""
        temperature = 1.0 if request.temperature is None else request.temperature
        top_p = 1.0 if request.top_p is None else request.top_p
        if top_p == 0:  # nothing but the likeliest
            temperature, top_p = 0.0, 1.0
        seed = secrets.randbits(62) if request.seed is None else request.seed
        adjustments = Adjustments(
            request.presence_penalty or 0.0, request.frequency_penalty or 0.0, self._bias(request)
        )
        return [
            Ask(
                prompt,
                limits,
                Sampler(
                    temperature,
                    request.top_k or 0,
                    top_p,
                    request.min_p or 0.0,
                    1.0 if request.repetition_penalty is None else request.repetition_penalty,
                    seed if number == 0 else (seed + number * _STEP) & _SEEDS,
                ),
                adjustments,
                top,
                time.monotonic() + self.options.deadline_s,
                constraint,
                bool(request.stream),
            )
            for number in range(choices)
        ]

    def _bias(self, request: Sampling) -> tuple[tuple[int, float], ...]:
        found = []
        for text, amount in (request.logit_bias or {}).items():
            if (
                not (text.isascii() and text.isdigit())
                or int(text[:12]) >= self.engine.architecture.vocabulary
            ):
                raise ApiError(
                    400,
                    f"logit_bias: {text[:40]!r} is no token of this model.",
                    param="logit_bias",
                    code="invalid_value",
                )
            found.append((int(text), amount))
        return tuple(found)


def _wanted_schema(request: ChatRequest) -> Any:
    """The JSON schema that the answer has to satisfy, None for any text."""
    if isinstance(request.response_format, JsonFormat):
        return {"type": "object"}
    if isinstance(request.response_format, SchemaFormat):
        return request.response_format.json_schema.schema
    return None


def check_dimensions(wanted: int | None, width: int) -> None:
    """Raises ApiError when vectors of another width are wanted."""
    if wanted not in (None, width):
        raise ApiError(
            400,
            f"dimensions={wanted} is not supported (this model's embeddings have {width}).",
            param="dimensions",
            code="invalid_value",
        )


def _stops(request: Sampling) -> tuple[str, ...]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if any(not stop for stop in stops):
        raise ApiError(400, "stop holds an empty text.", param="stop", code="invalid_value")
    return tuple(stops)


def _counts(request: Sampling) -> bool:
    return request.stream_options is not None and bool(request.stream_options.include_usage)
