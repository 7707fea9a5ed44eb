"""A server on the device that asks the cloud only for what needs it: V1, V2, V10 and V11 behind one address.

Paper: Large Language Models over Networks (arXiv 2605.08626, 2026; an article without code: the taxonomy is
[abstract], the algorithms are [inferred] from it and from the works it builds on: RouteLLM, FrugalGPT,
AutoMix).
What is here: `RouteServer` speaks OpenAI's chat to its clients. A pack of ours (or any OpenAI-compatible
server) is the device, any OpenAI-compatible server the cloud. Per query, or per step of an agent, `policy`
decides: `router` (a file of `share learn`: the cloud when the chance that it is needed reaches the
threshold), `cascade` (the device answers; the cloud is asked when the mean probability of its tokens is below
`tau`), `device`, `cloud`. A client may name `device` or `cloud` as the model, and with the header
x-haversack-privacy ask for a stricter level, never for a looser one. Budgets, all before anything is sent:
money (prices times the most tokens that the request can take; the cloud gets a limit of tokens that fits),
bytes, time (a cloud that does not begin in time is left, and one that was too slow is tried again only now
and then), privacy (`device`: nothing leaves; `derived`: text leaves with personal data replaced, pictures and
files do not; `any`: as it is). When a budget is used up the device answers, or the request ends with 402
(`exhausted`), in the middle of an agent's task too, whose every step is a request. A cloud that is down, slow
or limits us costs nothing but the wait: the device answers, and the cloud is left alone for a while. What a
server says it used is believed only within what the bytes allow. The ledger (core/ledger.py) gets every
request: where it went, why, bytes, money; never what was said.
What we changed: budgets hold for the whole ledger file, whoever wrote into it, so that they outlive a
restart; several servers may share it, and what they have under way at the same moment is not known to one
another.
Cost: redaction and routing, a few milliseconds a request.
Limits: chat only. An answer that breaks off after it began is ended with an error in its stream. The
confidence of a cascade needs a device that tells log probabilities, as ours does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from haversack.core._service import new_token
from haversack.core.budget import Budget
from haversack.core.errors import MissingExtraError, UserError, not_allowed
from haversack.core.ledger import COUNTERS, Ledger
from haversack.share._endpoint import Address, Endpoint, Meter
from haversack.share._life import Life
from haversack.share._prices import Price

if TYPE_CHECKING:
    from haversack.share._routing import Router

SYSTEM = 40

POLICIES = ("router", "cascade", "device", "cloud")
EXHAUSTED = ("device", "stop")


@dataclass(frozen=True)
class RouteOptions:
    """How to route. `device`: a pack, a bundled name, or an address; `cloud`: an address, None without one.
    `tau`: confidence below which a cascade asks the cloud. `budget`: latency_ms, uplink_kib, cost_usd,
    privacy (default derived). `private`: terms that never leave. `max_tokens`: of a request that names
    none."""

    device: str
    cloud: str | None = None
    device_key_env: str = ""
    cloud_model: str = ""
    cloud_key_env: str = ""
    cloud_price: Price = field(default_factory=Price)
    policy: str = "cascade"
    router: str | os.PathLike[str] | None = None
    threshold: float | None = None
    tau: float = 0.8
    budget: Budget = field(default_factory=Budget)
    exhausted: str = "device"
    ledger: str | os.PathLike[str] | None = None
    private: tuple[str, ...] = ()
    max_tokens: int = 1024
    host: str = "127.0.0.1"
    port: int = 8010
    token: str | None = None
    deadline_s: float = 120.0
    grace_s: float = 30.0
    body_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise not_allowed("policy", self.policy, POLICIES)
        if self.exhausted not in EXHAUSTED:
            raise not_allowed("exhausted", self.exhausted, EXHAUSTED)
        if self.policy == "router" and self.router is None:
            raise UserError(
                "policy=router needs a router file; make one with: haversack share learn", field="router"
            )
        for name, most in (("tau", 1.0), ("threshold", 1.0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= most):
                raise UserError(f"{name}={value} is outside 0 to 1.", field=name, given=value)
        for name in ("max_tokens", "deadline_s", "body_bytes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0.", field=name, given=getattr(self, name), nearest=1)
        unpriced = self.cloud_price == Price()
        if self.budget.cost_usd is not None and self.cloud is not None and unpriced:
            raise UserError(
                "a budget of money needs the cloud's price: --price IN,OUT in USD for a million tokens.",
                field="price",
                nearest="0.15,0.60",
            )

    @property
    def first_s(self) -> float:
        """Seconds that the cloud has to begin."""
        return self.deadline_s if self.budget.latency_ms is None else self.budget.latency_ms / 1e3


class RouteServer:
    """A device and a cloud behind one door; `run` serves until it is told to stop.

    The port is taken, the pack opened and the router read when it is made. Raises UserError for what does not
    hold of any of them.
    """

    def __init__(self, options: RouteOptions) -> None:
        _require_extra()
        from haversack.core._asgi import listening
        from haversack.share._http import Limits
        from haversack.share.serve import Options, Server

        Options(host=options.host, token=options.token)  # the same rules about hosts and tokens
        self.options = options
        self.limits = Limits(body_bytes=options.body_bytes, bodies_bytes=max(32 << 20, options.body_bytes))
        self.ledger = Ledger(options.ledger)
        self.router: Router | None = None
        self.threshold = 0.5 if options.threshold is None else options.threshold
        if options.router is not None:
            from haversack.share._router_files import load_router

            self.router, kept, _ = load_router(options.router)
            self.threshold = kept if options.threshold is None else options.threshold
        self._local: Server | None = None
        self._device_address = self._cloud_address = None
        if options.cloud is not None:
            self._cloud_address = Address(
                options.cloud, options.cloud_model, options.cloud_key_env, price=options.cloud_price
            )
        self.socket = listening(options.host, options.port)
        try:
            if options.device.startswith(("http://", "https://")):
                self._device_address = Address(options.device, key_env=options.device_key_env, tries=1)
            else:
                budget = Budget(ram_mib=options.budget.ram_mib)
                self._local = Server(options.device, Options(port=0, token=new_token(), budget=budget))
        except BaseException:
            self.socket.close()
            raise
        self._life = Life()

    @property
    def url(self) -> str:
        """Where it is reached."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def record(self) -> dict[str, Any]:
        """What `--json` prints when it serves."""
        options = self.options
        return {
            "url": self.url,
            "device": options.device,
            "cloud": options.cloud,
            "policy": options.policy,
            "threshold": self.threshold if self.router is not None else None,
            "tau": options.tau if options.policy == "cascade" else None,
            "budget": {name: value for name, value in options.budget.limits().items()},
            "privacy": options.budget.privacy or "derived",
            "ledger": None if options.ledger is None else str(options.ledger),
            "planned_mib": None if self._local is None else round(self._local.room.plan.total_mib, 2),
        }

    def state(self) -> dict[str, Any]:
        """Totals of the ledger, and where requests went."""
        totals = {name: self.ledger.total(name) for name in COUNTERS}
        answered = {
            where: self.app.metrics.value("routed_total", where=where) for where in ("device", "cloud")
        }
        return {"totals": totals, "answered": answered, "budget": self.options.budget.limits()}

    def book(self, number: str, where: str, why: str, meter: Meter | None) -> None:
        """One request into the ledger; `meter` is None where nothing left the device."""
        meter = meter or Meter()
        told = f"{number} {where}: {why}"
        if meter.sent_bytes and where == "cloud":
            usage = meter.usage
            told += f" [{usage.prompt}+{usage.completion} tokens {usage.source}, {meter.tries} tries]"
        self.ledger.add("cost_usd", meter.cost_usd, told)
        if meter.sent_bytes:
            self.ledger.add("uplink_bytes", meter.sent_bytes, told)
            self.ledger.add("downlink_bytes", meter.received_bytes, told)

    def run(self, ready: Callable[[RouteServer], None] = lambda server: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`. Only from the main thread."""
        self._life.run(self.serve(ready, signals=True), self.close)

    def stop(self) -> None:
        """Ask it to stop, from any thread."""
        self._life.stop()

    def close(self) -> None:
        """Give the ports and the weights back."""
        self.socket.close()
        if self._local is not None:
            self._local.close()

    async def serve(
        self, ready: Callable[[RouteServer], None] = lambda server: None, *, signals: bool = False
    ) -> None:
        """Serve on the running event loop until `stop`."""
        from haversack.share._http import http_server
        from haversack.share._route_app import RouteApp

        self._life.begin()
        async with self._device() as device:
            cloud = None if self._cloud_address is None else Endpoint(self._cloud_address)
            self.app = app = RouteApp(self, device, cloud)
            try:
                await self._life.stand(
                    *(http_server(app, self.limits), self.socket, app.writing, self.limits),
                    ready=lambda: ready(self),
                    drain=lambda hurry: app.drain(self.options.grace_s, hurry),
                    signals=signals,
                )
            finally:
                if cloud is not None:
                    await cloud.close()

    @contextlib.asynccontextmanager
    async def _device(self) -> AsyncIterator[Endpoint]:
        """The device as an endpoint; a pack is served on this machine, to us alone."""
        address, serving = self._device_address, None
        if self._local is not None:
            local = self._local
            up = asyncio.Event()
            serving = asyncio.create_task(local.serve(lambda _: up.set()))
            waiting = asyncio.create_task(up.wait())
            await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            address = Address(local.url, local.name, key=local.options.token or "", tries=1)
        assert address is not None
        device = Endpoint(address)
        try:
            yield device
        finally:
            await device.close()
            if self._local is not None and serving is not None:
                self._local.stop()
                await serving


def _require_extra() -> None:
    for module in ("fastapi", "uvicorn", "httptools", "prometheus_client", "httpx"):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingExtraError("haversack share route", module, "share") from error
