"""Who may upload: one-time codes that enrol a device, the token each device gets, contributors' tombstones.

A code is shown as QR; a device exchanges it once for a bearer token that is bound to the device's own random
`install`, so that a copied token is of no use on another device. Codes and tokens are kept as hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from haversack.collect._books import Books
from haversack.collect.bundle import BundleError, check_consent
from haversack.core._asgi import RefusedError
from haversack.core.errors import UserError

_INSTALL = re.compile(r"[A-Za-z0-9_-]{16,64}")
INVITE_HOURS, TOKEN_DAYS, QUOTA_MIB = 48.0, 365.0, 64 * 1024


@dataclass(frozen=True)
class Device:
    """An enrolled device: whose it is, what they agreed to, and how many bytes it may keep here."""

    id: str
    contributor: str
    policy_version: str
    retention_days: int
    quota_bytes: int


def invite(
    books: Books,
    contributor: str,
    *,
    policy_version: str,
    retention_days: int,
    quota_mib: float = QUOTA_MIB,
    hours: float = INVITE_HOURS,
    token_days: float = TOKEN_DAYS,
) -> str:
    """A code with which one device of `contributor` enrols. Raises UserError for a contributor that is no
    name or was forgotten, and for numbers that are not above 0."""
    try:
        check_consent(
            {
                "contributor_pseudonym": contributor,
                "policy_version": policy_version,
                "retention_days": retention_days,
            }
        )
    except BundleError as error:
        raise UserError(str(error), field="contributor", given=contributor) from error
    for name, value in (("quota_mib", quota_mib), ("hours", hours), ("token_days", token_days)):
        if not 0 < value < 1e9:
            raise UserError(f"{name}={value} is not supported (allowed above 0).", field=name, given=value)
    if is_forgotten(books, contributor):
        raise UserError(
            f"{contributor} asked to be forgotten; a new pseudonym is needed to take part again.",
            field="contributor",
            given=contributor,
        )
    code = secrets.token_urlsafe(12)
    with books.change() as change:
        change.execute(
            "INSERT INTO invites VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            (
                *(_hash(code), contributor, policy_version, retention_days, int(quota_mib * 2**20)),
                *(time.time() + hours * 3600, token_days),
            ),
        )
    return code


def look_at_invite(books: Books, code: str) -> dict[str, object]:
    """What a code stands for, without using it. Raises RefusedError 403 for a code that is unknown, used or
    expired."""
    row = books.row("SELECT * FROM invites WHERE code_sha256 = ?", (_hash(code),))
    if row is None or row["used"] or row["expires"] < time.time():
        raise RefusedError(403, "code", "this code is unknown, used or expired; ask for a new one.")
    return {name: row[name] for name in ("contributor", "policy_version", "retention_days")}


def enrol(books: Books, code: str, install: str, model: str, os: str) -> dict[str, object]:
    """Exchange a code for a device's id and token. Raises RefusedError 403 for a code that is unknown,
    used or expired, 400 for an `install` that is no random name."""
    if not _INSTALL.fullmatch(install):
        raise RefusedError(400, "install", "install is not 16 to 64 letters, digits, - or _.")
    if max(len(model), len(os)) > 200 or not (model + os).isprintable():
        raise RefusedError(400, "manifest", "model and os have at most 200 printable characters.")
    token, device, now = secrets.token_urlsafe(32), f"d-{secrets.token_hex(8)}", time.time()
    with books.change() as change:
        row = change.execute("SELECT * FROM invites WHERE code_sha256 = ?", (_hash(code),)).fetchone()
        if row is None or row["used"] or row["expires"] < now:
            raise RefusedError(403, "code", "this code is unknown, used or expired; ask for a new one.")
        change.execute("UPDATE invites SET used = 1 WHERE code_sha256 = ?", (_hash(code),))
        expires = now + row["token_days"] * 86_400
        change.execute(
            "INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(device, _hash(token), install, row["contributor"], row["policy_version"]),
                *(row["retention_days"], row["quota_bytes"], expires, model, os, now),
            ),
        )
    return {
        "device": device,
        "token": token,
        "expires": expires,
        "quota_bytes": row["quota_bytes"],
        "consent": {
            "contributor_pseudonym": row["contributor"],
            "policy_version": row["policy_version"],
            "retention_days": row["retention_days"],
        },
    }


def device_of(books: Books, authorization: str, install: str) -> Device:
    """The device whose token was sent. Raises RefusedError 401 for no, an unknown or an expired token, 403
    for the token of another device."""
    token = authorization[7:].strip() if authorization[:7].lower() == "bearer " else ""
    row = books.row("SELECT * FROM devices WHERE token_sha256 = ?", (_hash(token),)) if token else None
    challenge = {"WWW-Authenticate": "Bearer"}
    if row is None:
        raise RefusedError(401, "token", "a device's token is needed; enrol this device.", headers=challenge)
    if row["expires"] < time.time():
        raise RefusedError(
            401, "token-expired", "this device's token has expired; enrol it again.", headers=challenge
        )
    if not hmac.compare_digest(row["install"].encode(), install.encode("utf-8", "replace")):
        raise RefusedError(403, "other-device", "this token belongs to another device; enrol this one.")
    return Device(
        *(row["id"], row["contributor"], row["policy_version"], row["retention_days"], row["quota_bytes"])
    )


def mark_of(books: Books, contributor: str) -> str:
    """What stands for a forgotten contributor: a keyed hash of the pseudonym, whose key never leaves the
    store."""
    row = books.row("SELECT value FROM keys WHERE name = 'tombstones'")
    if row is None:
        with books.change() as change:
            change.execute("INSERT OR IGNORE INTO keys VALUES ('tombstones', ?)", (secrets.token_bytes(32),))
        row = books.row("SELECT value FROM keys WHERE name = 'tombstones'")
    assert row is not None
    return hmac.digest(row["value"], contributor.encode(), "sha256").hex()


def is_forgotten(books: Books, contributor: str) -> bool:
    """Whether a contributor asked to be forgotten."""
    mark = mark_of(books, contributor)
    return books.row("SELECT 1 FROM tombstones WHERE mark = ?", (mark,)) is not None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
