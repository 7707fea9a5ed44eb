"""What C is built for: this machine, two Cortex-M cores, a 32-bit RISC-V, and the boards that QEMU emulates
of them.

Paper: Toward smart composites (arXiv 2205.10940) compiles to a Cortex-M4F; the others are this package's own.
Cycles are a model: multiplications with an addition times a core's cycles each, by kernel. The figures are
estimates [inferred]: instructions of the inner loops as the kernels are written, times what each takes on the
core; those of matrix products are with Arm's DSP instructions where the core has them. Nothing calibrates
them: no board stood by, and QEMU runs instructions without counting cycles.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

from haversack.core.errors import unknown_name

SYSTEM = 18


@dataclass(frozen=True)
class Target:
    """`compiler`, `flags` and `emulator` are empty for the host; cycles are for one product of floats, of
    codes."""

    name: str
    board: str = ""
    compiler: str = ""
    flags: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    port: str = "port_host.c"
    script: str = ""
    float_cycles: float = 1.0
    int8_cycles: float = 1.0
    packages: str = ""
    fast_cycles: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of matrix products of floats, of codes, and of depthwise blocks."""

    def cycles(self, kernel: str, *, integer: bool) -> float:
        """For one product in a `direct`, `matmul` or `blocked` kernel."""
        if kernel == "direct":
            return self.int8_cycles if integer else self.float_cycles
        floats, codes, blocked = self.fast_cycles
        return blocked if kernel == "blocked" else codes if integer else floats

    def missing(self) -> str | None:
        """What keeps its harness from being built and run here; None when nothing does."""
        for name in filter(None, (self.compiler, self.emulator[0] if self.emulator else "")):
            if shutil.which(name) is None:
                return f"{name} is not installed (on Debian and Ubuntu: apt install {self.packages})"
        return None


SEMIHOSTING = ("-semihosting-config", "enable=on,target=native", "-nographic")
ARM = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"

TARGETS = {
    "host": Target("host", "this machine"),
    "cortex-m4f": Target(
        "cortex-m4f",
        "mps2-an386",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-O2", "-nostartfiles"),
        ("qemu-system-arm", "-M", "mps2-an386", *SEMIHOSTING),
        "port_arm.c",
        "arm.ld",
        4.0,
        5.0,
        ARM,
        (3.5, 1.6, 4.5),
    ),
    "cortex-m7": Target(
        "cortex-m7",
        "mps2-an500",
        "arm-none-eabi-gcc",
        ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16", "-O2", "-nostartfiles"),
        ("qemu-system-arm", "-M", "mps2-an500", *SEMIHOSTING),
        "port_arm.c",
        "arm.ld",
        2.5,
        3.0,
        ARM,
        (2.0, 1.0, 2.5),
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
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", *SEMIHOSTING),
        "port_riscv.c",
        "riscv.ld",
        5.0,
        6.0,
        "gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc",
        (4.5, 4.5, 5.0),
    ),
}
TARGETS["riscv32-zfh"] = replace(
    TARGETS["riscv32"],
    name="riscv32-zfh",
    flags=(*TARGETS["riscv32"].flags, "-DNN_ZFH"),
    emulator=(*TARGETS["riscv32"].emulator, "-cpu", "rv32,Zfh=true"),
)
"""The same core with 16-bit floats of its own."""


def target(name: str) -> Target:
    """The target of this name. Raises UserError, naming the nearest, for another."""
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS)
    return TARGETS[name]
