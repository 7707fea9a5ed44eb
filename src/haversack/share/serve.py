"""An HTTP server that OpenAI's clients speak to: completions, chat, embeddings, metrics and a page to chat.

    serve("code.pack", port=8000)

What is supported, and what is not: docs/serve.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from haversack.core import index
from haversack.core._service import new_token
from haversack.core.budget import Budget
from haversack.core.errors import MissingExtraError, UserError
from haversack.core.memory import MIB, peak_mib
from haversack.models._chat import ChatTemplate
from haversack.run._encoder import Encoder
from haversack.run._engine import Engine
from haversack.run._source import Model, encodes, open_model, open_source
from haversack.share._family import family_of, require_pair, tokenizer_hash
from haversack.share._life import Life
from haversack.share._protocol import FIRST_BYTES
from haversack.share._room import Room, encoder_room, make_room

LOCAL = ("127.0.0.1", "localhost", "::1")
TOKEN_LEAST = 16


@dataclass(frozen=True)
class Options:
    """How to serve. `name`: what clients call the model. `chat_template`: a file, instead of the model's own.
    `max_prompt`, `max_tokens`: most tokens of a prompt
    and of an answer (None: the context). `deadline_s`: most seconds of an answer. `grace_s`: what running
    answers get when the server is told to stop. `verify`: devices may send drafts (docs/remote.md); `draft`:
    their draft model, for sampling by rejection; `idle_s`: silence after which a device is let go."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    name: str | None = None
    chat_template: str | os.PathLike[str] | None = None
    contexts: int | None = None
    queue: int = 64
    prefix_mib: float | None = None
    context_length: int | None = None
    max_prompt: int | None = None
    max_tokens: int | None = None
    deadline_s: float = 600.0
    grace_s: float = 30.0
    body_bytes: int = 1 << 20
    connections: int = 256
    header_s: float = 10.0
    body_s: float = 20.0
    write_s: float = 20.0
    verify: bool = False
    draft: str | os.PathLike[str] | None = None
    idle_s: float = 60.0
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.host not in LOCAL and self.token is None:
            raise UserError(
                f"serving on {self.host} lets others in, so it needs a token; add --token {new_token()}",
                field="token",
            )
        if self.token is not None and (len(self.token) < TOKEN_LEAST or not self.token.isascii()):
            raise UserError(
                f"a token has at least {TOKEN_LEAST} ASCII characters; use for example {new_token()}",
                field="token",
            )
        if self.draft is not None and not self.verify:
            raise UserError("a draft model is for --verify, which is not given.", field="draft")
        seconds = ("deadline_s", "header_s", "body_s", "write_s", "idle_s")
        for name in ("queue", "body_bytes", "connections", *seconds):
            if not getattr(self, name) > 0:
                raise UserError(
                    f"{name}={getattr(self, name)} is not supported (allowed above 0).",
                    field=name,
                    given=getattr(self, name),
                )


class Server:
    """A model that is opened to be served; `run` serves it until it is told to stop.

    The port is taken and memory is planned when it is made. Raises UserError for a port that cannot be had
    and BudgetError for a budget that not one context fits.
    """

    def __init__(self, model: str | os.PathLike[str] | Model, options: Options, **engine: Any) -> None:
        _require_extra(options.verify)
        from haversack.core._asgi import listening
        from haversack.share._http import Limits

        self.options = options
        self.limits = Limits(
            body_bytes=options.body_bytes,
            bodies_bytes=max(8 << 20, options.body_bytes),
            connections=options.connections,
            header_s=options.header_s,
            body_s=options.body_s,
            write_s=options.write_s,
        )
        source = model.source if isinstance(model, Model) else open_source(model)
        self.name = options.name or source.path.name.removesuffix(".pack") or "model"
        self.files = source.files
        self.engine: Engine | None = None
        self.draft: Engine | None = None
        self.encoder: Encoder | None = None
        self.template: ChatTemplate | None = None
        self.socket = listening(options.host, options.port)
        try:
            if encodes(source) and options.verify:
                raise UserError(
                    "an encoder writes nothing that could be verified; leave --verify out.", field="verify"
                )
            if encodes(source):
                given = {name: engine.get(name) for name in ("residency", "activations", "threads")}
                self.encoder = Encoder.open(source, **given)
                self.room = encoder_room(self.encoder, options.budget, self.limits.bodies_bytes)
            else:
                opened = model if isinstance(model, Model) else open_model(source)
                self.template = (
                    ChatTemplate.of(source)
                    if options.chat_template is None
                    else ChatTemplate.of_file(options.chat_template, source)
                )
                small = self._draft_model(opened)
                self.room = self._make_room(opened, engine, small)
                self.engine = self._open(opened, self.room, engine)
                if small is not None:
                    self.draft = Engine.open(small, cache_type=engine.get("cache_type"))
        except BaseException:
            self.socket.close()
            raise
        self._life = Life()

    def _draft_model(self, model: Model) -> Model | None:
        """The draft model's copy, opened. Raises UserError for one that is no draft of `model`."""
        if self.options.draft is None:
            return None
        small = open_model(self.options.draft)
        require_pair(family_of(model), family_of(small))
        same = small.architecture.vocabulary == model.architecture.vocabulary
        if not same or tokenizer_hash(small) != tokenizer_hash(model):
            raise UserError(
                f"the draft {self.options.draft} has another tokenizer than {model.path.name}; a draft must "
                "share it.",
                field="draft",
                given=str(self.options.draft),
            )
        return small

    def _make_room(self, model: Model, engine: dict[str, Any], small: Model | None = None) -> Room:
        options, context = self.options, model.architecture.context
        length = options.context_length or context
        if not 1 <= length <= context:
            raise UserError(
                f"context_length={length} is outside 1 to the model's {context}.",
                field="context_length",
                given=length,
                nearest=min(max(length, 1), context),
            )
        return make_room(
            model,
            residency=engine.get("residency") or str(model.plan.get("residency") or "mapped"),
            cache_type=engine.get("cache_type") or str(model.plan.get("cache_type") or "f32"),
            context_length=length,
            budget=options.budget,
            bodies_bytes=self.limits.bodies_bytes,
            contexts=options.contexts,
            prefix_mib=options.prefix_mib,
            verify=options.verify,
            small=small,
        )

    def _open(self, model: Model, room: Room, engine: dict[str, Any]) -> Engine:
        budget = None
        if self.options.budget.ram_mib is not None:  # what is left for the engine and one context
            more = {"server", "requests", "prefixes"}
            others = sum(
                count for label, count in room.plan.lines if label in more or label.startswith("draft")
            )
            others += (room.contexts - 1) * model.architecture.cache_nbytes(
                room.context_length, engine.get("cache_type") or str(model.plan.get("cache_type") or "f32")
            )
            budget = Budget(ram_mib=self.options.budget.ram_mib - others / MIB)
        if room.experts_bytes is not None:  # a batch's steps take more room than one text's
            named = engine.get("residency") or str(model.plan["residency"])
            method: Any = index.create("run", "residency", named) if isinstance(named, str) else named
            engine = {**engine, "residency": replace(method, buffer_kib=room.experts_bytes // 1024)}
        return Engine.open(
            model,
            prefill="chunked:tokens=256",
            context_length=room.context_length,
            budget=budget,
            whole_cache=True,  # a slot's cache and the prefixes keep every entry
            **engine,
        )

    @property
    def url(self) -> str:
        """Where it is reached."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def verify_url(self) -> str:
        """What devices are told: `run DRAFT --decode remote --server URL`."""
        return self.url.replace("http://", "ws://", 1)

    def record(self) -> dict[str, Any]:
        """What `--json` prints when it serves."""
        return {
            "url": self.url,
            "model": self.name,
            "contexts": self.room.contexts,
            "context_length": self.room.context_length,
            "prefix_mib": round(self.room.prefix_bytes / 2**20, 2),
            "queue": self.options.queue,
            "verify": self.verify_url if self.options.verify else None,
            "planned_mib": round(self.room.plan.total_mib, 2),
            "plan": self.engine.plan if self.engine is not None else self.encoder.plan,  # type: ignore[union-attr]
        }

    def measured_mib(self) -> float:
        """Peak memory so far."""
        return peak_mib(self.files)

    def run(self, ready: Callable[[Server], None] = lambda server: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; `ready` is called when requests are answered. Only from the
        main thread.

        Raises KeyboardInterrupt after SIGINT, when what ran has been ended properly.
        """
        self._life.run(self.serve(ready, signals=True), self.close)

    def stop(self) -> None:
        """Ask it to stop, from any thread."""
        self._life.stop()

    def close(self) -> None:
        """Give the port and the weights back."""
        self.socket.close()
        for part in (self.engine, self.encoder, self.draft):
            if part is not None:
                part.close()

    async def serve(
        self, ready: Callable[[Server], None] = lambda server: None, *, signals: bool = False
    ) -> None:
        """Serve on the running event loop until `stop`."""
        from haversack.share._app import App
        from haversack.share._http import http_server

        self._life.begin()
        self.app = app = App(self)
        http = http_server(app, self.limits, self._message_bytes() if self.options.verify else None)
        try:
            await self._life.stand(
                *(http, self.socket, app.writing, self.limits),
                ready=lambda: ready(self),
                drain=lambda hurry: app.drain(self.options.grace_s, hurry),
                signals=signals,
            )
        finally:
            await asyncio.to_thread(app.close)

    def _message_bytes(self) -> int:
        """Of a device's longest message, which opens a text."""
        return 4 * self.room.context_length + FIRST_BYTES


def serve(model: str | os.PathLike[str], options: Options | None = None, **engine: Any) -> None:
    """Serve `model` (a pack, a checkpoint folder or a bundled name) until SIGTERM or SIGINT."""
    Server(model, options or Options(), **engine).run()


def _require_extra(verify: bool) -> None:
    needed = ("fastapi", "uvicorn", "httptools", "prometheus_client", "websockets")
    for module in needed if verify else needed[:-1]:
        try:
            __import__(module)
        except ImportError as error:
            raise MissingExtraError("haversack serve", module, "serve") from error
