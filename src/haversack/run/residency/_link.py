"""The computing process's end: it starts the process that holds the key, asks it, and maps what it
restored.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from haversack.core.errors import DamagedFileError, HaversackError, UserError
from haversack.run.residency._regions import map_region

GRACE_S = 10.0
_PROGRAM = "from haversack.run.residency._holder import main; main({})"


class Link:
    """A running holder of what `asked` says (see `_holder.main`); `regions` are those it has shown, by
    number.

    Raises what went wrong there: UserError for the wrong key, DamagedFileError for what is not what was
    sealed.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.regions: dict[int, memoryview] = {}
        self.ready: dict[int, int] = {}
        """Unit -> number of its region, of those that are restored."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._failure: HaversackError | None = None
        self.waited_s = 0.0
        """Seconds that units were waited for."""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM.format(theirs.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(asked).encode())

    def opened(self) -> None:
        """Wait until the key and the pack have been accepted."""
        self._until(lambda said: "opened" in said)

    def wait(self, unit: int, using: Iterable[int] = ()) -> memoryview:
        """The region of `unit`, once it is restored; those of the units in `using` stay as they are."""
        while unit not in self.ready and self._hear(block=False):
            pass
        if unit not in self.ready:
            began = time.perf_counter()
            self.ask(do="want", unit=unit, using=list(using))
            while unit not in self.ready:
                self._hear()
            self.waited_s += time.perf_counter() - began
        return self.regions[self.ready[unit]]

    def ask(self, **request: Any) -> None:
        """Send a request."""
        try:
            self._socket.send(json.dumps(request).encode())
        except OSError:
            while True:  # it ended; what it said last is why
                self._hear()

    def answer(self, word: str, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the message that has `word`."""
        self.ask(**request)
        return self._until(lambda said: word in said)

    def drop(self, units: Callable[[int], bool]) -> None:
        """Forget the regions of some units, which nobody may be using."""
        for unit in [one for one in self.ready if units(one)]:
            self.regions.pop(self.ready.pop(unit), None)

    def close(self) -> None:
        """End the holder and wait until it has wiped what it restored."""
        self.regions.clear()
        self._socket.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # storage that stalls may keep it a while longer
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            said = self._hear()
            if said is not None and wanted(said):
                return said

    def _hear(self, *, block: bool = True) -> dict[str, Any] | None:
        """Take one message; None when there is none and `block` is False."""
        if self._failure is not None:
            raise self._failure
        if not block and not select.select([self._socket], [], [], 0)[0]:
            return None
        try:
            data, passed, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
        except ConnectionError:
            data, passed = b"", []
        if not data:
            self._failure = HaversackError("the process that holds the key ended without a word.")
            raise self._failure
        said: dict[str, Any] = json.loads(data)
        if "fail" in said:
            self._failure = _error(said)
            raise self._failure
        if "ready" in said:
            self.ready[said["ready"]] = said["region"]
        elif "dropped" in said:
            for unit in said["dropped"]:
                self.ready.pop(unit, None)
        elif "region" in said and passed:
            self.regions[said["region"]] = map_region(passed[0])
        return said


def _error(said: Mapping[str, Any]) -> HaversackError:
    if said["kind"] == "damaged":
        return DamagedFileError(said["path"], said["fail"], field=said["field"])
    if said["kind"] == "user":
        return UserError(said["fail"], field=said["field"], given=said["given"])
    return HaversackError(f"the process that holds the key failed ({said['fail']})")
