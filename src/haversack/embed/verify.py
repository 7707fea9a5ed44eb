"""Builds a compiled network for this machine and for its target, runs both, compares every output.

The harness prints each output's bytes; they are compared here with the golden ones of the folder: codes
exactly, floats within 1e-5 of the largest output (or of 1). On this machine it is built optimised, under the
address and undefined-behaviour sanitizers, without SIMD where it has any, and with its arena right behind and
right before pages that nobody may touch, always with warnings as errors; for a core, with its cross compiler,
and run on the board that QEMU emulates of it, output by semihosting. Marks: the highest byte of the arena
that was touched, bytes of stack below the harness (a pattern painted before each pass), and whether guard
bytes around the arena held.

Paper: the checks are this package's own; Toward smart composites (arXiv 2205.10940) reports flash alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import HaversackError, UserError
from haversack.embed._host import SANITIZED, compile_with, tool
from haversack.embed.build import TOLERANCE
from haversack.embed.targets import Target, target

Array = npt.NDArray[Any]
SYSTEM = 18

STRICT = ("-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-DNN_ARENA_OUTSIDE")
TIMEOUT_S = 300


@dataclass(frozen=True)
class Run:
    """One build and what it printed. `largest` is the largest difference, as a share of the largest output
    (or of 1) for floats, in codes for int8; `instructions`: of the longest pass or step, where the board
    counts them; `skipped` says why nothing ran."""

    where: str
    outputs: int = 0
    differing: int = 0
    largest: float = 0.0
    arena_used: int = 0
    stack_used: int | None = None
    instructions: int | None = None
    skipped: str | None = None

    @property
    def holds(self) -> bool:
        """Whether it ran and every output agreed."""
        return self.skipped is None and self.outputs > 0 and self.differing == 0


@dataclass(frozen=True)
class Verified:
    """All runs, and the folder's report."""

    runs: tuple[Run, ...]
    report: dict[str, Any]

    @property
    def holds(self) -> bool:
        """Whether every build that could run agrees, and one could."""
        ran = [run for run in self.runs if run.skipped is None]
        return bool(ran) and all(run.holds for run in ran)

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"builds": [asdict(run) for run in self.runs], "holds": self.holds, "report": self.report}


def verify(folder: Path) -> Verified:
    """Build and run what `haversack embed build` wrote into `folder`; networks that learn by
    _train_verify.py.

    Raises UserError for a folder that is none, CompileError for C that a compiler refuses, HaversackError for
    a harness that breaks.
    """
    report = read_report(folder)
    if "training" in report:
        from haversack.embed._train_verify import verify_training

        return Verified(verify_training(folder, report), report)
    goal = target(report["target"])
    wanted = golden_outputs(folder)
    team = ("-pthread",) if report.get("threads", 1) > 1 else ()
    runs = [
        run_host(folder, wanted, "this machine", "-O2", *team),
        run_host(folder, wanted, "this machine, sanitized", "-O1", *SANITIZED, *team),
    ]
    runs.append(run_host(folder, wanted, "this machine, guard pages", "-O2", "-DNN_GUARD_PAGES", *team))
    if report.get("kernels"):
        runs.append(run_host(folder, wanted, "this machine, no SIMD", "-O2", "-DNN_PORTABLE", *team))
    if goal.name != "host":
        runs.append(run_target(folder, goal, wanted))
    return Verified(tuple(runs), report)


def read_report(folder: Path) -> dict[str, Any]:
    """`report.json` of a folder. Raises UserError where there is none."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return {"target": str(report["target"]), "kind": str(report["kind"]), **report}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} holds no network that embed build wrote ({error}); run: haversack embed build "
            f"MODEL -o {folder}",
            field="folder",
            given=str(folder),
        ) from error


def golden_outputs(folder: Path) -> Array:
    """(golden, outputs) of `golden.h`, read back from the C."""
    text = (folder / "golden.h").read_text(encoding="utf-8")
    count = int(re.search(r"GOLDEN = (\d+)", text)[1])  # type: ignore[index]
    found = re.search(r"const (\w+) golden_outputs\[\d+\] = \{(.*?)\};", text, re.DOTALL)
    if found is None:
        raise UserError(f"{folder / 'golden.h'} holds no golden outputs.", field="folder", given=str(folder))
    kind = np.int8 if found[1] == "int8_t" else np.float32
    numbers = [cell.strip().rstrip("f") for cell in found[2].split(",") if cell.strip()]
    return np.array(numbers, float).astype(kind).reshape(count, -1)


def run_host(folder: Path, wanted: Array, where: str, *flags: str) -> Run:
    """Build for this machine with `flags`, run, compare."""
    suffixes = {"-DNN_PORTABLE": "-plain", "-DNN_GUARD_PAGES": "-guarded", SANITIZED[1]: "-sanitized"}
    program = folder / f"host{''.join(suffixes.get(flag, '') for flag in flags)}"
    stack = () if "-O2" in flags else ("-DNN_NO_STACK",)
    gcc = tool("gcc", "gcc")
    compile_with([gcc, *STRICT, *flags, *stack], folder, ["network.c", "main.c", "port_host.c"], program)
    return compared(where, printed([str(program)]), wanted)


def run_target(folder: Path, goal: Target, wanted: Array) -> Run:
    """Build for a core and run on its emulated board; skipped, with the reason, without the tools."""
    where = f"{goal.name}, {goal.board} under QEMU"
    if (reason := goal.missing()) is not None:
        return Run(where, skipped=reason)
    elf = folder / "target.elf"
    flags = [*goal.flags, "-T", str(folder / goal.script)]
    compile_with([goal.compiler, *STRICT, *flags], folder, ["network.c", "main.c", goal.port], elf)
    return compared(where, printed([*goal.command(), "-kernel", str(elf)]), wanted)


def printed(command: Sequence[str]) -> str:
    """What a harness printed; its exit code is judged by what it printed.

    It prints into a file: what comes by semihosting is lost where the reader of a pipe is slower than QEMU,
    which writes without waiting.
    """
    with tempfile.TemporaryFile() as place:
        try:
            done = subprocess.run(
                command,
                stdout=place,
                stderr=subprocess.STDOUT,  # where QEMU puts what comes by semihosting
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise HaversackError(f"{command[0]} did not end within {TIMEOUT_S} s.") from error
        place.seek(0)
        found = place.read().decode(errors="replace")
    if "guards " not in found:
        said = found.strip()[-1500:]
        raise HaversackError(f"the harness broke ({command[0]} ended with {done.returncode}): {said}")
    return found


def compared(where: str, text: str, wanted: Array) -> Run:
    """The run that a harness's print tells of. Raises HaversackError for a guard byte that was written."""
    found = [bytes.fromhex(line.split()[1]) for line in text.splitlines() if line.startswith("output ")]
    outputs = np.array([np.frombuffer(each, wanted.dtype) for each in found])
    marks = dict(re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE))
    if int(marks["guards"]):
        raise HaversackError(f"{where}: {marks['guards']} bytes beside the arena were written.")
    if outputs.shape != wanted.shape:
        raise HaversackError(f"{where}: outputs of the shape {outputs.shape}, {wanted.shape} were asked for.")
    gap = np.abs(outputs.astype(float) - wanted.astype(float))
    if wanted.dtype != np.int8:
        gap = gap / max(1.0, float(np.abs(wanted).max()))
    allowed = 0.0 if wanted.dtype == np.int8 else TOLERANCE
    differing = int((~(gap <= allowed)).sum())
    stack = int(marks["stack"]) if "stack" in marks else None
    return Run(
        where,
        outputs.size,
        differing,
        float(np.nan_to_num(gap, nan=np.inf).max()),
        int(marks["arena"]),
        stack,
        int(marks["instructions"]) or None,
    )
