"""What C is built for: this machine, two Cortex-M cores, a 32-bit RISC-V, and the boards that QEMU emulates
of them.

Paper: Toward smart composites (arXiv 2205.10940) compiles to a Cortex-M4F; the others are this package's own.
Cycles are a model: instructions, fitted to what the emulated boards count (instructions.py), times the cycles
that a core is taken to need for one. These last figures are estimates [inferred] of one core each (a load
takes two cycles on a Cortex-M4 and a jump that is taken two to four, a Cortex-M7 issues two instructions at
once): no board stood by.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass, replace

from haversack.core.errors import unknown_name

SYSTEM = 18


@dataclass(frozen=True)
class Target:
    """`compiler`, `flags` and `emulator` are empty for the host."""

    name: str
    board: str = ""
    compiler: str = ""
    flags: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    port: str = "port_host.c"
    script: str = ""
    cycles_per_instruction: float = 1.0
    packages: str = ""
    extensions: tuple[str, str] = ("", "")
    """What the emulated core has beyond the plain one, as QEMU before 8 and QEMU since then name it."""

    counts_as: str = ""
    """The core whose instructions were fitted."""

    @property
    def float_cycles(self) -> float:
        """Of one product of floats in the plain dense kernel; 1 on the host."""
        return self.product_cycles("float") if self.counts_as else 1.0

    def product_cycles(self, kind: str) -> float:
        """The same for numbers of a kind (instructions.py)."""
        from haversack.embed.instructions import product_instructions

        return (
            self.cycles_per_instruction * product_instructions(self.counts_as, kind)
            if self.counts_as
            else 1.0
        )

    def command(self) -> tuple[str, ...]:
        """The emulator's command, as the QEMU that is installed takes it."""
        said = self.extensions[qemu_major(self.emulator[0]) >= 8] if self.emulator else ""
        return (*self.emulator, "-cpu", f"rv32,{said}") if said else self.emulator

    def missing(self) -> str | None:
        """What keeps its harness from being built and run here; None when nothing does."""
        for name in filter(None, (self.compiler, self.emulator[0] if self.emulator else "")):
            if shutil.which(name) is None:
                return f"{name} is not installed (on Debian and Ubuntu: apt install {self.packages})"
        return None


SEMIHOSTING = ("-semihosting-config", "enable=on,target=native", "-nographic", "-icount")
"""Output by semihosting, and a time that goes on with every instruction (2^shift ns), by which boards count
them."""
ARM = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"

TARGETS = {
    "host": Target("host", "this machine"),
    "cortex-m4f": Target(
        "cortex-m4f",
        "mps2-an386",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-O2", "-nostartfiles"),
        ("qemu-system-arm", "-M", "mps2-an386", *SEMIHOSTING, "shift=5"),
        "port_arm.c",
        "arm.ld",
        1.3,
        ARM,
        counts_as="cortex-m4f",
    ),
    "cortex-m7": Target(
        "cortex-m7",
        "mps2-an500",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16", "-O2", "-nostartfiles"),
        ("qemu-system-arm", "-M", "mps2-an500", *SEMIHOSTING, "shift=5"),
        "port_arm.c",
        "arm.ld",
        0.7,
        ARM,
        counts_as="cortex-m7",
    ),
    "riscv32": Target(
        "riscv32",
        "virt",
        "riscv64-unknown-elf-gcc",
        (
            "-march=rv32imafc",
            "-mabi=ilp32f",
            "-mcmodel=medany",
            "--specs=picolibc.specs",
            "-O2",
            "-nostartfiles",
        ),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", *SEMIHOSTING, "shift=0"),
        "port_riscv.c",
        "riscv.ld",
        1.2,
        "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc",
        counts_as="riscv32",
    ),
}
TARGETS["riscv32-zfh"] = replace(
    TARGETS["riscv32"],
    name="riscv32-zfh",
    flags=(*TARGETS["riscv32"].flags, "-DNN_ZFH"),
    extensions=("Zfh=true", "zfh=true"),
)
"""The same core with 16-bit floats of its own."""
TARGETS["riscv32-zvfh"] = replace(
    TARGETS["riscv32"],
    name="riscv32-zvfh",
    flags=(*TARGETS["riscv32"].flags, "-DNN_ZVFH"),
    extensions=("v=true,Zfh=true", "v=true,zfh=true,zvfh=true"),
)
"""The same with vectors of them. QEMU before 8 has vectors of 16-bit floats wherever it has vectors."""


@functools.cache
def qemu_major(name: str) -> int:
    """The first number of an emulator's version; a large one where there is none."""
    if shutil.which(name) is None:
        return 99
    said = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"version (\d+)", said)
    return int(found[1]) if found else 99


def target(name: str) -> Target:
    """The target of this name. Raises UserError, naming the nearest, for another."""
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    return TARGETS[name]
