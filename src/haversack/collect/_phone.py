"""What the phone app needs of the server beside uploads: its own files, the words of a consent, the policy.

The app is built by `make app` from `app/` into `collect/app/` and served at `/`. A lab puts its own words
into `STORE/policies/VERSION.txt` and its thresholds into `STORE/policy.toml`; without them the app shows its
own words and uses the defaults.
"""

from __future__ import annotations

import mimetypes
import re
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from haversack.collect._books import Books
from haversack.collect._devices import look_at_invite
from haversack.collect._policy import read_policy
from haversack.collect.detector import HANDS
from haversack.core._asgi import RefusedError
from haversack.core.errors import UserError

NOT_BUILT = (
    "The phone app is not part of this installation; build it with `make app` in a checkout of the source "
    "(it needs Node 18 or newer), or install a wheel that has it."
)
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'unsafe-eval'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Everything comes from this server. MediaPipe's glue makes functions out of text, hence `unsafe-eval`; the
app itself writes nothing but text into the page."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), accelerometer=(self), gyroscope=(self), microphone=()",
}
TEXT_MOST = 32 * 1024
KINDS = {
    **{".js": "text/javascript", ".mjs": "text/javascript", ".webmanifest": "application/manifest+json"},
    **{".wasm": "application/wasm", ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8"},
}
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASHED = re.compile(r"assets/.+-[A-Za-z0-9_-]{8}\.[a-z]+")


@dataclass(frozen=True)
class Served:
    """One file of the app and the headers it goes out with."""

    data: bytes
    headers: dict[str, str]


class PhoneApp:
    """The built app's files; none where it is not built."""

    def __init__(self, folder: Path | None = None) -> None:
        root = Path(str(files("haversack.collect").joinpath("app"))) if folder is None else folder
        self._paths: dict[str, Path] = {}
        if (root / "index.html").is_file():
            for path in root.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    self._paths[path.relative_to(root).as_posix()] = path
            if HANDS.is_file():  # the very file of the agent in Python
                self._paths["models/hands.onnx"] = HANDS

    @property
    def built(self) -> bool:
        """Whether there is an app to serve."""
        return bool(self._paths)

    def get(self, name: str) -> Served | None:
        """The file of that name ("" is the first page); None for what is not in the app. Only names that were
        there when the server began are known, so that no name reaches another path."""
        name = name or "index.html"
        if name not in self._paths:
            return None
        kind = KINDS.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        kept = "public, max-age=31536000, immutable" if _HASHED.fullmatch(name) else "no-cache"
        headers = {**HEADERS, "Content-Type": kind, "Cache-Control": kept}
        return Served(self._paths[name].read_bytes(), headers)


def terms(books: Books, root: Path, code: str) -> dict[str, Any]:
    """What a contributor agrees to by using `code`: the version, the days, and the lab's own text or None.
    The code stays unused. Raises RefusedError 403 for a code that is unknown, used or expired."""
    found = look_at_invite(books, code)
    version = str(found["policy_version"])
    path = root / "policies" / f"{version}.txt"
    text = None
    if _VERSION.fullmatch(version) and path.is_file():
        text = path.read_bytes()[:TEXT_MOST].decode("utf-8", "replace")
    blurred = policy_record(root)["privacy"]["blur_hz"] > 0
    return {**found, "text": text, "faces_blurred": blurred}


def policy_record(root: Path) -> dict[str, Any]:
    """The store's policy for phones as tables of numbers. Raises RefusedError 500 for one that cannot be
    read: the app then keeps the policy it has."""
    path = root / "policy.toml"
    try:
        policy = read_policy(path if path.is_file() else None)
    except UserError as error:
        raise RefusedError(500, "policy", f"the store's policy.toml does not hold: {error}") from error
    return asdict(policy)
