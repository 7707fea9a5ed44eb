"""The device's side of the upload: sends the clips of a spool, deletes one only when it is safe elsewhere.

Paper: AoE (arXiv 2602.23893); the protocol is [inferred] (docs/collect.md). Delivery is at least once: a clip
stays in the spool until the server has answered `complete` with 200, and sending it again is answered the
same. After a failure the server is asked how much of the file it has, so that nothing that arrived is sent
twice. Failures that may pass (no connection, 429, 5xx) are waited out with exponential backoff and full
jitter; a refusal of one clip leaves it in the spool and goes on with the next; a refusal of the device ends
the work.

Limits: clips go one after another, in order of their names.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from haversack.collect._crc32c import crc32c
from haversack.collect._extra import need
from haversack.collect.bundle import Bundle, BundleError, Manifest, bundles_in
from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, HaversackError, UserError

SYSTEM = 1
IDENTITY = "device.json"
_PASSING = (408, 409, 422, 423, 425, 429, 460)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How failures are waited out: the first wait is at most `first_s`, doubled each time up to `most_s`,
    drawn evenly from 0 (full jitter); after `give_up_s` of failures of one request the work ends."""

    first_s: float = 1.0
    most_s: float = 300.0
    give_up_s: float = 3600.0
    request_s: float = 60.0


@dataclass
class Pushed:
    """What was done: clips and bytes of them delivered, bytes of chunks sent, requests that were tried
    again, and clips that were refused with the reason."""

    clips: list[str] = field(default_factory=list)
    payload_bytes: int = 0
    sent_bytes: int = 0
    retries: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)


class UnreachableError(UserError):
    """The server could not be reached for longer than the patience allows; the spool is as it was."""


class _AgainError(HaversackError):
    """A failure that may pass; `after_s` is what the server asked for."""

    def __init__(self, sentence: str, after_s: float = 0.0, status: int = 0) -> None:
        super().__init__(sentence)
        self.after_s = after_s
        self.status = status


class _ClipRefusedError(HaversackError):
    """This clip is not taken; `code` is the server's."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def enrol(spool: Path, url: str, code: str, *, model: str = "", os_name: str = "") -> dict[str, Any]:
    """Exchange a code for this device's identity, kept in `spool/device.json` for its owner alone. Raises
    UserError for a code that is refused."""
    httpx = need("httpx", "haversack collect push")
    install = secrets.token_urlsafe(24)
    asked = {
        **{"code": code, "install": install},
        **{"model": model or platform.machine() or "computer", "os": os_name or platform.system()},
    }
    try:
        response = httpx.post(f"{url.rstrip('/')}/v1/devices", json=asked, timeout=30)
    except httpx.TransportError as error:
        raise UnreachableError(f"{url} cannot be reached ({_said(error)}).", field="to", given=url) from error
    except httpx.InvalidURL as error:
        raise UserError(f"{url} is no address ({error}).", field="to", given=url) from error
    if response.status_code != 201:
        raise UserError(f"the device was not enrolled: {_reason(response)[1]}", field="enrol", given=code)
    identity = {**response.json(), "install": install, "url": url.rstrip("/")}
    spool.mkdir(parents=True, exist_ok=True)
    write_atomically(spool / IDENTITY, json.dumps(identity, indent=1).encode())
    with contextlib.suppress(OSError):
        (spool / IDENTITY).chmod(0o600)
    return identity


def identity_of(spool: Path) -> dict[str, Any]:
    """What `enrol` kept. Raises UserError where the device was never enrolled."""
    path = spool / IDENTITY
    if not path.is_file():
        raise UserError(
            f"{spool} belongs to no enrolled device; add --enrol CODE (from: haversack collect enrol).",
            field="enrol",
            given=None,
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(found[name], str) for name in ("device", "token", "install")):
            raise ValueError("a field is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(path, f"it is no identity ({error})", advice="Enrol again.") from error
    return dict(found)


class Pusher:
    """Pushes the clips of one spool to `url`; a context manager.

    `chunk_bytes` of a request; `on_progress` is told each chunk's bytes.
    """

    def __init__(
        self,
        spool: Path,
        url: str,
        *,
        chunk_bytes: int = 1 << 20,
        patience: Patience | None = None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        if not 1 <= chunk_bytes <= 4 << 20:
            raise UserError(
                f"chunk_bytes={chunk_bytes} is not supported (allowed 1 to {4 << 20}).",
                field="chunk_bytes",
                given=chunk_bytes,
            )
        self._httpx = need("httpx", "haversack collect push")
        self._tenacity = need("tenacity", "haversack collect push")
        identity = identity_of(spool)
        self.spool, self.patience, self.chunk_bytes = spool, patience or Patience(), chunk_bytes
        self.done = Pushed()
        self._progress = on_progress
        headers = {
            "Authorization": f"Bearer {identity['token']}",
            "Haversack-Install": identity["install"],
            "Tus-Resumable": "1.0.0",
        }
        try:
            self._client = self._httpx.Client(
                base_url=url.rstrip("/"), headers=headers, timeout=self.patience.request_s
            )
        except self._httpx.InvalidURL as error:
            raise UserError(f"{url} is no address ({error}).", field="to", given=url) from error

    def __enter__(self) -> Pusher:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def push(self) -> Pushed:
        """Send every clip of the spool. Raises UserError when the device is refused, UnreachableError when
        the server is away for longer than the patience allows."""
        for folder in bundles_in(self.spool):
            try:
                bundle = Bundle.open(folder)
                absent = bundle.sizes_differ()
                if absent:
                    raise BundleError("size", f"{', '.join(absent)} is not what the manifest says.")
                self._deliver(bundle)
            except (BundleError, _ClipRefusedError) as error:
                code = getattr(error, "code", "bundle")
                self.done.refused.append({"path": str(folder), "code": code, "reason": str(error)})
        return self.done

    def _deliver(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        for _ in range(3):  # twice more when a file arrived damaged
            begun = self._try(lambda: self._post("/v1/clips", manifest.encode()).json())
            upload = str(begun["upload_id"])
            for sha256 in begun["missing"]:
                self._send_file(bundle, upload, str(sha256))
            if self._completed(upload):
                self.done.clips.append(manifest.clip_uuid)
                self.done.payload_bytes += manifest.nbytes
                self._remove(bundle)
                return
        raise _ClipRefusedError("hash", "the files are not what the manifest says, even sent three times.")

    def _completed(self, upload: str) -> bool:
        try:
            self._try(lambda: self._post(f"/v1/uploads/{upload}/complete", b""), settle=(409, 422))
        except _ClipRefusedError:
            return False
        return True

    def _send_file(self, bundle: Bundle, upload: str, sha256: str) -> None:
        record = _named(bundle.manifest, sha256)
        address = f"/v1/uploads/{upload}/{sha256}"
        here: int | None = None
        with (bundle.path / record.name).open("rb") as file:

            def step() -> int:
                """Send one chunk; the new offset. After a failure the server is asked where the file ends:
                what arrived is not sent again."""
                nonlocal here
                begin, here = self._offset(address) if here is None else here, None
                if begin >= record.bytes:
                    return begin
                file.seek(begin)
                return self._patch(address, begin, file.read(self.chunk_bytes))

            while here is None or here < record.bytes:
                here = self._try(step)

    def _patch(self, address: str, offset: int, chunk: bytes) -> int:
        checksum = base64.b64encode(crc32c(chunk).to_bytes(4, "big")).decode()
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"crc32c {checksum}",
        }
        self.done.sent_bytes += len(chunk)
        response = self._ask("PATCH", address, content=chunk, headers=headers)
        after = int(response.headers["Upload-Offset"])
        self._progress(after - offset)
        return after

    def _offset(self, address: str) -> int:
        return int(self._ask("HEAD", address).headers["Upload-Offset"])

    def _post(self, address: str, data: bytes) -> Any:
        return self._ask("POST", address, content=data, headers={"Content-Type": "application/json"})

    def _ask(self, method: str, address: str, **more: Any) -> Any:
        """One request. Raises _AgainError for what may pass, _ClipRefusedError for this clip, UserError for
        this device."""
        try:
            response = self._client.request(method, address, **more)
        except self._httpx.TransportError as error:
            raise _AgainError(_said(error)) from error
        status = response.status_code
        if status < 300:
            return response
        code, sentence = _reason(response)
        if status == 401 or code in ("other-device", "install"):
            raise UserError(f"the server refuses this device: {sentence}", field="token")
        if code != "clip" and (status in _PASSING or status >= 500):
            said = response.headers.get("Retry-After", "")
            raise _AgainError(f"{status}: {sentence}", float(said) if said.isdigit() else 0.0, status)
        raise _ClipRefusedError(code, sentence)

    def _try(self, ask: Callable[[], T], *, settle: tuple[int, ...] = ()) -> T:
        """Call `ask` until it does not fail in passing; `settle` are statuses that no waiting heals."""
        tenacity, patience = self._tenacity, self.patience
        jitter = tenacity.wait_random_exponential(multiplier=patience.first_s, max=patience.most_s)

        def wait(state: Any) -> float:
            error = state.outcome.exception()
            return max(float(jitter(state)), min(getattr(error, "after_s", 0.0), patience.most_s))

        def once() -> T:
            try:
                return ask()
            except _AgainError as failure:
                if failure.status in settle:
                    raise _ClipRefusedError("again", str(failure)) from failure
                self.done.retries += 1
                raise

        trying = tenacity.Retrying(
            wait=wait,
            stop=tenacity.stop_after_delay(patience.give_up_s),
            retry=tenacity.retry_if_exception_type(_AgainError),
            reraise=True,
        )
        try:
            return trying(once)  # type: ignore[no-any-return]
        except _AgainError as error:
            raise UnreachableError(
                f"the server could not be reached for {patience.give_up_s:g} s ({error}); clips that were "
                "not delivered are still in the spool.",
                field="to",
            ) from error

    def _remove(self, bundle: Bundle) -> None:
        """Take the clip's name away first, so that a kill leaves a clip or none."""
        aside = bundle.path.with_name(f"{bundle.path.name}.partial-{os.getpid()}-sent")
        bundle.path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        for folder in (bundle.path.parent, bundle.path.parent.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _named(manifest: Manifest, sha256: str) -> Any:
    for file in manifest.files:
        if file.sha256 == sha256:
            return file
    raise _ClipRefusedError("server", "the server asks for a file that the clip does not have.")


def _reason(response: Any) -> tuple[str, str]:
    try:
        record = response.json()
        return str(record["code"]), str(record["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return "http", f"status {response.status_code}"


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
