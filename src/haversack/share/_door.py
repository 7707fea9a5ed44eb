"""Who may come in: a token, or, without one, this machine's own programs and pages; and how errors leave."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from haversack.core.errors import UserError
from haversack.share._errors import ApiError
from haversack.share._waiting import Gone, Receive, Scope, Send, send_error

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]
log = logging.getLogger("haversack.serve")


class Door:
    """Lets requests in. `open_paths` need no token."""

    def __init__(self, token: str | None, open_paths: tuple[str, ...]) -> None:
        self.token = (token or "").encode()
        self._open_paths = open_paths

    def admit(self, scope: Scope) -> None:
        """Raises ApiError for who may not ask."""
        headers = dict(scope["headers"])
        if not self.token:
            self.from_here(headers)
            return
        said = headers.get(b"authorization", b"")
        given = said[7:] if said[:7].lower() == b"bearer " else b""
        if scope["path"] not in self._open_paths and not hmac.compare_digest(given, self.token):
            raise ApiError(
                401,
                "a valid token is needed: Authorization: Bearer TOKEN.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    @staticmethod
    def from_here(headers: dict[bytes, bytes]) -> None:
        """Without a token, pages of other sites may not ask through somebody's browser."""
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        name = urlsplit(f"//{host}").hostname if host else None
        if name not in (None, "127.0.0.1", "localhost", "::1") or (
            origin and urlsplit(origin).netloc != host
        ):
            raise ApiError(
                403, "another site may not use this server; give it a token to allow that.", code="forbidden"
            )


async def guarded(run: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an endpoint; what it raises becomes OpenAI's error, unless the response has begun."""
    begun = False

    async def noted(message: Any) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        await run(scope, receive, noted)
    except Gone:
        pass
    except UserError as error:
        await send_error(send, ApiError.of(error))
    except ApiError as error:
        await send_error(send, error)
    except Exception as error:
        log.exception("%s %s failed", scope["method"], scope["path"])
        if begun:
            raise
        said = f"the server failed ({type(error).__name__})."
        await send_error(send, ApiError(500, said, code="internal_error"))
