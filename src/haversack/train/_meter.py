"""Memory of a training, planned line by line and measured: what is saved for the way back, and the process.

The plan begins with what the process already holds when the network is open (its own peak, as core/memory.py
counts it), so that interpreter, libraries and weights are measured, not guessed; what learning adds comes on
top, by the plans of network and gradient method.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haversack.core.memory import MIB, PAGE, MemoryPlan, give_back_freed, peak_mib
from haversack.train._network import Network, Pictures, Tokens
from haversack.train._slots import Gradient, Learned

SAVED = "saved for the way back"
"""The line of a network's plan that `Network.saved_nbytes` is held against."""
AGAIN = 2 << 20
"""What a process that gave back all it could takes again: buffers of products, files while they are written
[measured on x86-64, two cores]."""


@dataclass(frozen=True)
class Saved:
    """Bytes kept between the way forward and the way back: by the plan, and the most that a step had."""

    planned: int | None
    measured: int

    def record(self) -> dict[str, Any]:
        """As `--json` prints it, in MiB."""
        planned = None if self.planned is None else round(self.planned / MIB, 4)
        return {"planned": planned, "measured": round(self.measured / MIB, 4)}


def opened_nbytes() -> int:
    """What this process has held at most so far."""
    return round(peak_mib() * MIB)


def settled_nbytes() -> int:
    """What this process holds now, freed memory given back."""
    gc.collect()
    give_back_freed()
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:
        return opened_nbytes()
    return int(fields[1]) * PAGE


def settled(plan: MemoryPlan, now: int, tensors: int, peak: int) -> MemoryPlan:
    """`plan` for a process that holds `now` bytes with the network closed (`tensors` bytes of it, and AGAIN,
    come back) and has held `peak` once: choosing among methods opens a network for each."""
    (name, _), *others = plan.lines
    added = sum(count for _, count in others)
    return MemoryPlan(((name, max(now + tensors + AGAIN, peak - added)), *others))


def memory_plan(opened: int, network: Network, learned: Learned, gradient: Gradient, rows: int) -> MemoryPlan:
    """Of a training with steps of `rows` rows in a process that holds `opened` bytes with the network open.

    Held-out rows are judged forward alone, as many at a time as a step has, which takes no more.
    """
    step = gradient.plan(network, learned, rows)
    lines = (("process with the network open", opened), ("inputs", input_nbytes(network, rows)), *step)
    return MemoryPlan(tuple(line for line in lines if line[1]))


def saved_line(plan: MemoryPlan) -> int | None:
    """What a plan says is saved for the way back; None where it does not say."""
    return next((count for name, count in plan.lines if name == SAVED), None)


def input_nbytes(network: Network, rows: int) -> int:
    """Bytes of the inputs and labels of `rows` rows, twice: as read and as stacked."""
    form = network.form
    if isinstance(form, Pictures):
        one = form.height * form.width * form.channels
    elif isinstance(form, Tokens):
        one = 4 * form.length
    else:
        one = 4
        for size in form.shape:
            one *= size
    return 2 * rows * (one + 8)
