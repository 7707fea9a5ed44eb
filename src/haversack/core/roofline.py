"""The roofline: how long a device takes for a list of kernel calls, from what each reads and computes.

A call takes the longer of moving its bytes and doing its operations, plus the cost of calling it (Williams,
Waterman and Patterson, 2009, with the call added, which decides for small models under Python). Bytes read
from storage are not overlapped with anything, which is the upper bound that streaming starts from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from haversack.core.device import HUGE_SPEEDUP, PRECISIONS, Device
from haversack.core.errors import UserError, not_allowed


@dataclass(frozen=True)
class Cost:
    """One kernel call, or `calls` alike: `bytes` of memory and `operations` (a multiply-add is two) of each,
    the `precision` of the arithmetic (f32, f16, bf16, int8), and `storage_bytes` read past the page cache.
    `huge`: the bytes lie in 2 MiB pages."""

    kernel: str
    bytes: float
    operations: float
    precision: str = "f32"
    calls: int = 1
    storage_bytes: float = 0.0
    huge: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise not_allowed("precision", self.precision, PRECISIONS)
        if min(self.bytes, self.operations, self.calls, self.storage_bytes) < 0:
            raise UserError(f"{self.kernel} costs less than nothing.", field="cost", given=self)


@dataclass(frozen=True)
class Bound:
    """How long a kernel's calls take together and what bounds them: `memory`, `arithmetic`, `storage` or
    `calls`."""

    kernel: str
    seconds: float
    by: str


def bandwidth(device: Device, threads: int | None = None, *, huge: bool = False) -> float:
    """Bytes of memory a second that `threads` read together (None: all cores), in 2 MiB pages when `huge`; it
    grows with threads until the device's whole bandwidth is reached."""
    one, whole = device.read_gb_s_one_thread * 1e9, device.read_gb_s * 1e9
    if huge:
        faster = device.read_gb_s_huge / device.read_gb_s or HUGE_SPEEDUP
        one, whole = faster * one, faster * whole
    return whole if threads is None else min(whole, max(1, threads) * one)


def bounds(costs: Iterable[Cost], device: Device, threads: int | None = None) -> tuple[Bound, ...]:
    """Time and bound of every kernel name, the longest first. `threads` (None: all cores) are used by every
    call."""
    share = 1.0 if threads is None else min(max(1, threads), device.cores) / device.cores
    seconds: dict[str, float] = {}
    by: dict[str, dict[str, float]] = {}
    for cost in costs:
        parts = {
            "memory": cost.bytes / bandwidth(device, threads, huge=cost.huge),
            "arithmetic": cost.operations / (device.rate(cost.precision) * share),
            "storage": cost.storage_bytes / (device.storage_mb_s * 1e6),
            "calls": device.call_us * 1e-6,
        }
        took = max(parts["memory"], parts["arithmetic"]) + parts["storage"] + parts["calls"]
        seconds[cost.kernel] = seconds.get(cost.kernel, 0.0) + cost.calls * took
        longest = max(parts, key=parts.__getitem__)
        shares = by.setdefault(cost.kernel, {})
        shares[longest] = shares.get(longest, 0.0) + cost.calls * parts[longest]
    order = sorted(seconds, key=seconds.__getitem__, reverse=True)
    return tuple(
        Bound(kernel, seconds[kernel], max(by[kernel], key=by[kernel].__getitem__)) for kernel in order
    )


def seconds(costs: Iterable[Cost], device: Device, threads: int | None = None) -> float:
    """How long `device` takes for all `costs`, one call after another, in seconds.

    >>> seconds([Cost("matmul", bytes=2.2e9, operations=0)], device("raspberry-pi-zero-2w"))
    1.000004
    """
    return sum(bound.seconds for bound in bounds(costs, device, threads))


def energy_mj(busy_seconds: float, device: Device, idle_seconds: float = 0.0) -> float:
    """Modelled energy in millijoules: the whole device busy, then idle, for these seconds."""
    return 1e3 * (busy_seconds * device.watts_busy + idle_seconds * device.watts_idle)
