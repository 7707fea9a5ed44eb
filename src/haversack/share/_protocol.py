"""What a device that drafts and a server that verifies say to each other: version 1, in frames that are
signed.

A frame is a WebSocket message of bytes: 16 bytes of HMAC-SHA-256 over direction, number and payload, then the
payload, a MessagePack array that begins with the message's number. The key comes from the token, from what
the server said first (its versions and a random number) and from a random number of the device: frames of
another connection, repeated, left out or altered ones do not verify. The token itself never travels. Nothing
is encrypted: that is what `wss://` is for. docs/remote.md describes every field.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from haversack.core.errors import HaversackError
from haversack.run._rounds import LONGEST

I32 = npt.NDArray[np.int32]
M = TypeVar("M", bound="Message")

VERSIONS = (1,)
PATH = "/v1/verify"
SIGNED = 16
"""Bytes of a frame's signature."""
NONCE = 16
FIRST_BYTES = 4096
"""Of a greeting or a hello, at most."""
GREEDY, TOKENS, REJECTION = "greedy", "tokens", "rejection"
UNAUTHORIZED, FOREIGN, MALFORMED, IDLE, CROWDED, STOPPING = 4401, 4403, 4400, 4408, 4429, 4503
"""Codes with which the server closes a connection."""

Small = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Word = Annotated[str, msgspec.Meta(max_length=200)]
Hash = Annotated[bytes, msgspec.Meta(max_length=32)]
Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE, max_length=NONCE)]


class Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A message; on the wire an array of its number and its fields."""


class Greeting(Message, tag=0):
    """The server's first, which nobody signs: the versions it speaks, whether it wants a token."""

    versions: list[Small]
    token: bool
    nonce: Nonce


class Hello(Message, tag=1):
    """The device's first: the version it chooses and whose tokens it drafts. `tokenizer`: hash of the tokens'
    texts and numbers; `draft`: hash of the draft model where sampling is by rejection, else empty; `anchor`
    and `family`: of the pack, empty where it has none; `sampling`: tokens or rejection."""

    version: Small
    nonce: Nonce
    tokenizer: Hash
    vocabulary: Small
    draft: Hash
    anchor: Word
    family: Word
    sampling: Word


class Welcome(Message, tag=2):
    """The pair fits: the server's model, its context, the most drafts of a round and the seconds after which
    a silent device is let go. `target`: what tells the model's version from others."""

    model: Word
    target: Word
    vocabulary: Small
    context: Small
    longest: Small
    idle_s: float


class Open(Message, tag=3):
    """A text begins (or goes on, on a new connection): `session` is a number of the device's choice, `text`
    its tokens so far, of which the answer begins at `begins`; at most `most` tokens of it are written."""

    session: Small
    text: bytes
    begins: Small
    most: Small
    temperature: float
    top_k: Small
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    logs: bool


class Opened(Message, tag=4):
    """The text is read; `served_us`: how long that took, `cached`: tokens that had been read before."""

    session: Small
    length: Small
    cached: Small
    served_us: Small
    first_us: Small
    more_us: float


class Round(Message, tag=5):
    """Drafts for the tokens from place `start` of the text on."""

    session: Small
    round: Small
    start: Small
    ids: Annotated[bytes, msgspec.Meta(max_length=4 * LONGEST)]


class Reply(Message, tag=6):
    """The first `accepted` drafts hold and `token` follows them. `served_us`: from the round's arrival to
    this; a verification of n tokens takes about `first_us` + `more_us` (n - 1). `logs`: natural
    log-probabilities f64 of the tokens, where they were asked for."""

    session: Small
    round: Small
    accepted: Small
    token: Small
    served_us: Small
    first_us: Small
    more_us: float
    logs: bytes


class Close(Message, tag=7):
    """The text is over: its slot is free."""

    session: Small


class Refused(Message, tag=8):
    """What was asked is not done: a code for programs and a sentence. With `over` the text is gone."""

    session: Small
    code: Word
    sentence: Annotated[str, msgspec.Meta(max_length=1000)]
    over: bool = False


FromDevice = Open | Round | Close
FromServer = Welcome | Opened | Reply | Refused


class ProtocolError(HaversackError):
    """A frame that is none of this protocol; `code` closes the connection."""

    def __init__(self, sentence: str, code: int = MALFORMED) -> None:
        super().__init__(sentence)
        self.code = code


def nonce() -> bytes:
    """A random number that is used once."""
    return secrets.token_bytes(NONCE)


def encode(message: Message) -> bytes:
    """A message's payload."""
    return msgspec.msgpack.encode(message)


def decode(payload: bytes, kind: Any) -> Any:
    """The message of type `kind` that a payload is. Raises ProtocolError for anything else."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"the message is none of this protocol ({error}).") from error


class Signer:
    """Signs what one side says and checks what the other says. `greeting`: the server's first payload,
    `device_nonce`: that of the hello, `device`: which side this is."""

    def __init__(self, token: str, greeting: bytes, device_nonce: bytes, *, device: bool) -> None:
        label = b"haversack verify " + len(greeting).to_bytes(4, "little")
        self._key = hmac.digest(token.encode(), label + greeting + device_nonce, "sha256")
        self._said, self._heard = (b"d", b"s") if device else (b"s", b"d")
        self._sent = self._seen = 0

    def sign(self, message: Message) -> bytes:
        """The next frame of this side."""
        payload = encode(message)
        frame = self._signature(self._said, self._sent, payload) + payload
        self._sent += 1
        return frame

    def open(self, frame: bytes, kind: Any) -> Any:
        """The message of the next frame of the other side. Raises ProtocolError for one that is forged,
        altered, repeated, of another connection, or no message."""
        payload = frame[SIGNED:]
        if not hmac.compare_digest(frame[:SIGNED], self._signature(self._heard, self._seen, payload)):
            raise ProtocolError("a frame is not signed by who should have sent it now.", UNAUTHORIZED)
        self._seen += 1
        return decode(payload, kind)

    def _signature(self, side: bytes, number: int, payload: bytes) -> bytes:
        head = side + number.to_bytes(8, "little")
        return hmac.digest(self._key, head + payload, hashlib.sha256)[:SIGNED]


def width_of(vocabulary: int) -> int:
    """Bytes of a token's number on the wire: 2 or 4."""
    return 2 if vocabulary <= 1 << 16 else 4


def pack_ids(ids: Sequence[int] | I32, vocabulary: int) -> bytes:
    """Tokens as little-endian numbers of `width_of` bytes."""
    return np.asarray(ids, np.int64).astype(f"<u{width_of(vocabulary)}").tobytes()


def unpack_ids(data: bytes, vocabulary: int) -> I32:
    """The tokens i32 [n] of `pack_ids`. Raises ValueError for a broken number and for no token."""
    width = width_of(vocabulary)
    if len(data) % width:
        raise ValueError(f"{len(data)} bytes are no tokens of {width} bytes")
    ids = np.frombuffer(data, f"<u{width}")
    if len(ids) and int(ids.max()) >= vocabulary:
        raise ValueError(f"token {int(ids.max())} is none of {vocabulary}")
    return ids.astype(np.int32)
