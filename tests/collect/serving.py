"""Collection servers for tests: in a thread, or as the command in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from tests.servers import running

from haversack.bench.aoe._processes import COMMAND, Command
from haversack.bench.aoe._proxy import Proxy
from haversack.collect._devices import invite
from haversack.collect.push import Patience, Pusher, enrol
from haversack.collect.server import Options, Server

__all__ = ["COMMAND", "Command", "Proxy", "client", "enrolled", "headers", "pusher", "serving"]
QUICK = Patience(first_s=0.01, most_s=0.05, give_up_s=20.0, request_s=20.0)


@contextlib.contextmanager
def serving(root: Path, **options: Any) -> Iterator[Server]:
    server = Server(root, Options(**{"port": 0, "grace_s": 5.0, **options}))
    with running(server):
        yield server


def enrolled(server: Server, spool: Path, contributor: str = "c-anna", **how: Any) -> dict[str, Any]:
    """Enrol a device for `contributor`; its identity, which lies in the spool."""
    given = {"policy_version": "1.2", "retention_days": 365, **how}
    return enrol(spool, server.url, invite(server.store.books, contributor, **given))


def headers(identity: dict[str, Any], **more: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {identity['token']}",
        "Haversack-Install": identity["install"],
        **more,
    }


def client(server: Server, identity: dict[str, Any]) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers=headers(identity), timeout=20)


def pusher(spool: Path, url: str, **how: Any) -> Pusher:
    return Pusher(spool, url, **{"patience": QUICK, **how})
