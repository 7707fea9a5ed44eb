"""A memory limit that the kernel enforces: a control group (version 2, or 1 where that is mounted) for one
command."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from haversack.core.errors import UserError

_ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A fresh group whose processes together hold at most `limit_mib`, page cache included (which the kernel
    reclaims first) and without swap where it can say so. Raises UserError with the reason where this machine
    allows none."""

    def __init__(self, limit_mib: float) -> None:
        limit = str(int(limit_mib * 2**20))
        reasons = []
        for parent, limits in _parents():
            self.path = parent / f"haversack-{os.getpid()}-{os.urandom(4).hex()}"
            try:
                self.path.mkdir()
                for name, value in limits.items():
                    if (self.path / name).exists():
                        (self.path / name).write_text(value.format(limit=limit))
                    elif "limit" in value:
                        raise OSError(f"no {name} there")
            except OSError as error:
                reasons.append(f"{parent}: {error.strerror or error}")
                self.remove()
                continue
            return
        said = "; ".join(reasons) or "no memory controller is mounted"
        raise UserError(f"no memory limit can be set here ({said}).", field="limit_mib", given=limit_mib)

    def join(self, argv: list[str]) -> list[str]:
        """The command line that enters the group and then becomes `argv`."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *argv]

    def remove(self) -> None:
        """Remove the group; its processes have ended."""
        for _ in range(50):
            with contextlib.suppress(FileNotFoundError):
                try:
                    self.path.rmdir()
                except FileNotFoundError:
                    return
                except OSError:  # the last process is still being taken down
                    time.sleep(0.01)
                    continue
            return


def _parents() -> list[tuple[Path, dict[str, str]]]:
    """Groups of this process under which one with a memory limit may be made, and the files that set it."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers == "":
            for mount in (_ROOT, _ROOT / "unified"):
                own = mount / inside.lstrip("/")
                if (own / "cgroup.controllers").is_file() and "memory" in (
                    own / "cgroup.controllers"
                ).read_text():
                    found.append((own, {"memory.max": "{limit}", "memory.swap.max": "0"}))
        elif "memory" in controllers.split(","):
            own = _ROOT / "memory" / inside.lstrip("/")
            found.append((own, {"memory.limit_in_bytes": "{limit}", "memory.swappiness": "0"}))
    return found
