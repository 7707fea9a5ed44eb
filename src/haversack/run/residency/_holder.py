"""The process that holds the key: it decrypts weights into regions that the computing process only reads.

    python -P -c "from haversack.run.residency._holder import main; main(SOCKET)"   < what to hold, as JSON

It computes nothing and hears nothing but the requests below; the process that computes maps its regions
read-only. A request is one JSON object a message: want {unit, using}, free {unit}, gather {unit | null,
tensor, blocks}, rest {units}, times {}. It ends when the socket does, wiping what it restored.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.storage import DirectFile, SlowStorage
from haversack.formats._sealed_versions import Versions
from haversack.formats.sealed import Vault, read_key
from haversack.run.residency._restoration import Span
from haversack.run.residency._restorer import Restorer

NICE = 10
"""Restoration yields to the operators that compute."""
MOST_HELPERS = 3


def failure(error: BaseException) -> dict[str, Any]:
    """An error as the engine gets it."""
    said: dict[str, Any] = {"fail": f"{type(error).__name__}: {error}", "kind": "ours"}
    if isinstance(error, DamagedFileError):
        said = {"fail": error.what, "kind": "damaged", "path": error.path, "field": error.field}
    elif isinstance(error, UserError):
        said = {"fail": str(error), "kind": "user", "field": error.field, "given": str(error.given)}
    return said


def harden() -> None:
    """No core dumps, no debugger of the same user, no Ctrl-C of the terminal (the engine tells when to
    end).
    """
    import ctypes
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
    with contextlib.suppress(OSError):
        os.nice(NICE)


def main(descriptor: int) -> None:
    """Hold what standard input says for the engine at the other end of the socket."""
    harden()
    sys.setswitchinterval(2e-4)  # a thread that waits for the storage must not wait for a block's end as well
    link = socket.socket(fileno=descriptor)
    sending = threading.Lock()

    def tell(message: dict[str, Any], passed: int | None) -> None:
        data = json.dumps(message).encode()
        with sending, contextlib.suppress(OSError):
            if passed is None:
                link.send(data)
            else:
                socket.send_fds(link, [data], [passed])

    def fail(error: BaseException) -> None:
        tell(failure(error), None)

    try:
        asked = json.load(sys.stdin)
        key = read_key(asked["key"])
        folder = Path(asked["pack"])
        vault = Vault.open(folder, key, asked["record"].encode())
        Versions(key).admit(vault)
        del key
        storage = SlowStorage(asked["mb_s"]) if asked["mb_s"] else None
        units = [(layer, size, tuple(Span(*span) for span in spans)) for layer, size, spans in asked["units"]]
        with DirectFile(vault.path, storage) as file:
            tell({"opened": vault.name}, None)
            helpers = min(MOST_HELPERS, (os.cpu_count() or 1) - 1)
            holder = Restorer(
                vault, file, units, asked["kept"], asked["slots"], asked["schedule"], tell, fail, helpers
            )
            try:
                holder.begin()
                while data := link.recv(1 << 16):
                    answer(holder, json.loads(data), tell)
            finally:
                holder.close()
    except BaseException as error:
        fail(error)


def answer(holder: Restorer, request: dict[str, Any], tell: Any) -> None:
    """Do what one message asks."""
    what = request["do"]
    if what == "want":
        holder.want(request["unit"], request["using"])
    elif what == "free":
        holder.free(request["unit"])
    elif what == "gather":
        holder.gather(request["unit"], request["tensor"], request["blocks"])
    elif what == "rest":
        holder.rest(request["units"])
    elif what == "times":
        tell({"times": dict(holder.times), "restored": holder.restored}, None)
        holder.times.update(dict.fromkeys(holder.times, 0.0))
        holder.restored = 0
    else:
        raise ValueError(f"there is no request {what!r}")
