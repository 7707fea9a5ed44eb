"""A measurement proves a plan: what was measured, on which machine, from which seed and commit."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError, not_allowed

DIRECTIONS = ("lower", "higher")
ENERGY_SOURCES = ("counter", "modelled")


@dataclass(frozen=True)
class Quality:
    """One named quality; `better` says its direction: `lower` (a loss) or `higher` (an accuracy)."""

    name: str
    value: float
    better: str

    def __post_init__(self) -> None:
        if self.better not in DIRECTIONS:
            raise not_allowed("better", self.better, DIRECTIONS)

    def loss_against(self, other: Quality) -> float:
        """How much worse this is than `other`, as a fraction of `other` (0.01 is one percent worse, negative
        is better).

        Raises UserError when the two are different qualities.
        """
        if (self.name, self.better) != (other.name, other.better):
            raise UserError(
                f"{self.name} cannot be compared with {other.name}.", field="quality", given=self.name
            )
        worse = self.value - other.value if self.better == "lower" else other.value - self.value
        if worse == 0:
            return 0.0
        return worse / abs(other.value) if other.value else float("inf") * (1 if worse > 0 else -1)


def _machine_now() -> dict[str, Any]:
    return machine()


def _commit_now() -> str | None:
    return commit()


@dataclass(frozen=True)
class Measurement:
    """What one run of one plan took; None is not measured.

    `memory_mib`: peak (core/memory.py). `first_output_ms`, `throughput` in `throughput_unit` (tokens/s,
    frames/s, ...). `wire_bytes`: sent and received. `energy_mj` with `energy_source`: `counter` where the
    machine has one, else `modelled`. `machine` is `machine()`'s record, `commit` is `commit()`.
    """

    quality: tuple[Quality, ...] = ()
    memory_mib: float | None = None
    storage_mib: float | None = None
    first_output_ms: float | None = None
    throughput: float | None = None
    throughput_unit: str = "tokens/s"
    wire_bytes: int | None = None
    energy_mj: float | None = None
    energy_source: str | None = None
    seed: int | None = None
    machine: Mapping[str, Any] = field(default_factory=_machine_now)
    commit: str | None = field(default_factory=_commit_now)

    def __post_init__(self) -> None:
        if self.energy_mj is not None and self.energy_source not in ENERGY_SOURCES:
            raise not_allowed("energy_source", self.energy_source, ENERGY_SOURCES)

    def record(self) -> dict[str, Any]:
        """As plain data for `--json` and pack.json; what was not measured is left out."""
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}


@dataclass(frozen=True)
class Spread:
    """Median, extremes and count of repeated measurements, as a bench row prints them."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises UserError when there is no value."""
        if not values:
            raise UserError("nothing was measured: a spread needs at least one value.", field="values")
        return cls(statistics.median(values), min(values), max(values), len(values))


@functools.cache
def machine() -> dict[str, Any]:
    """This machine: `cpu`, `cores` (that this process may use), `isa`, `ram_mib`, `os`, `arch`, `python`."""
    return {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "isa": instruction_set(),
        "ram_mib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20),
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "python": platform.python_version(),
    }


def available_cores() -> int:
    """Cores this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_set() -> str:
    """The best of our kernels' instruction sets that this processor has: avx512 (with VNNI), avx2, dotprod,
    neon or portable. Read from the system; what the kernels really use is `haversack.kernels.isa()`."""
    flags = _cpu_flags()
    if {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= flags:
        return "avx512"
    if {"avx2", "fma", "f16c"} <= flags:
        return "avx2"
    if platform.machine() in ("aarch64", "arm64"):
        return "dotprod" if "asimddp" in flags or platform.system() == "Darwin" else "neon"
    return "portable"


@functools.cache
def commit() -> str | None:
    """The commit of the source tree this package runs from, `-dirty` appended when its files changed; None
    when the package is installed elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "src" / "haversack").is_dir():
        return None
    said = []
    for arguments in (
        ("rev-parse", "--short=12", "HEAD"),
        ("status", "--porcelain", "--untracked-files=no", "src", "native"),
    ):
        try:
            done = subprocess.run(
                ("git", *arguments), cwd=root, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        said.append(done.stdout.strip())
    return said[0] + ("-dirty" if said[1] else "")


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    names = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    return (
        names.get("model name")
        or names.get("Model")
        or names.get("Hardware")
        or platform.processor()
        or "unknown"
    )
