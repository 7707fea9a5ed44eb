"""Builds a network that learns for this machine and its target, takes golden steps, compares what learned.

After every golden step the harness prints the block of what learns, and after the last one a pass over each
golden input; both are compared here with `golden.bin` and `golden.h`, number by number and to the bit. The
harness itself compares the losses (within 1e-5 of the largest, or of 1) and checksums of the blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import HaversackError, UserError
from haversack.embed import verify as harness
from haversack.embed._host import SANITIZED, compile_with, tool
from haversack.embed._train_emission import WIDTHS
from haversack.embed.halves import unpacked
from haversack.embed.targets import target

Array = npt.NDArray[Any]
TIMEOUT_S = 600
STORED = {"int8": "<i1", "int32": "<i4", "f32": "<f4", "f16": "<u2", "bf16": "<u2"}


def verify_training(folder: Path, report: Mapping[str, Any]) -> tuple[harness.Run, ...]:
    """Every build of `folder` and how it learned. Raises what `verify` raises."""
    goal = target(str(report["target"]))
    gcc = tool("gcc", "gcc")
    sources = ["network.c", "main.c", "port_host.c"]
    runs = []
    for where, name, flags in (
        ("this machine", "host", ("-O2",)),
        ("this machine, sanitized", "host-sanitized", ("-O1", *SANITIZED, "-DNN_NO_STACK")),
    ):
        compile_with([gcc, *harness.STRICT, *flags], folder, sources, folder / name)
        runs.append(compared(where, harness.printed([str(folder / name)]), folder, report))
    if goal.name != "host":
        where = f"{goal.name}, {goal.board} under QEMU"
        if (reason := goal.missing()) is not None:
            runs.append(harness.Run(where, skipped=reason))
        else:
            elf = folder / "target.elf"
            own = (*goal.flags, "-T", str(folder / goal.script))
            compile_with(
                [goal.compiler, *harness.STRICT, *own], folder, ["network.c", "main.c", goal.port], elf
            )
            text = harness.printed([*goal.command(), "-kernel", str(elf)])
            runs.append(compared(where, text, folder, report))
    return tuple(runs)


def numbers_of(block: bytes, learned: Mapping[str, Any]) -> Array:
    """Every number of a block, f64, in the order of the parameters."""
    found = []
    for place in learned.values():
        count, dtype = math.prod(place["shape"]), str(place["dtype"])
        end = int(place["offset"]) + count * WIDTHS[dtype]
        values = np.frombuffer(block[int(place["offset"]) : end], STORED[dtype])
        found.append((unpacked(values, dtype) if values.dtype == np.uint16 else values).astype(np.float64))
    return np.concatenate(found)


def compared(where: str, text: str, folder: Path, report: Mapping[str, Any]) -> harness.Run:
    """The run that a harness's print tells of. Raises HaversackError for a guard byte that was written."""
    training = report["training"]
    size = int(training["learned_bytes"])
    lines = text.splitlines()
    blocks = [bytes.fromhex(line.split()[1]) for line in lines if line.startswith("learned ")]
    outputs = b"".join(bytes.fromhex(line.split()[1]) for line in lines if line.startswith("output "))
    marks = dict(re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE))
    if int(marks["guards"]):
        raise HaversackError(f"{where}: {marks['guards']} bytes beside the arena were written.")
    wanted, passes = (folder / "golden.bin").read_bytes(), harness.golden_outputs(folder)
    if not size or len(wanted) % size or len(wanted) != size * len(blocks):
        raise UserError(
            f"{folder / 'golden.bin'} holds {len(wanted):,} bytes and the harness took {len(blocks)} "
            f"steps of {size:,}; build the folder again.",
            field="folder",
            given=str(folder),
        )
    differing, count, largest = 0, 0, 0.0
    for number, block in enumerate(blocks):
        ours = numbers_of(block, training["learned"])
        theirs = numbers_of(wanted[number * size : (number + 1) * size], training["learned"])
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        differing, count = differing + int((~same).sum()), count + same.size
        largest = max(largest, float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf)[~same].max(initial=0)))
    found = np.frombuffer(outputs, "<f4").astype(np.float64)
    gap = np.abs(found - passes.astype(np.float64).ravel())
    differing, count = differing + int((~(gap == 0)).sum()), count + gap.size
    if not differing and int(marks["differing"]):
        differing = int(marks["differing"])  # losses, which the harness alone compares
    stack = int(marks["stack"]) if "stack" in marks else None
    largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max(initial=0)))
    return harness.Run(
        where, count, differing, largest, int(marks["arena"]), stack, int(marks["instructions"]) or None
    )
