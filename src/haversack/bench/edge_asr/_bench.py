"""The bench object that the files of this folder add their rows to, and the grid of methods and settings."""

from __future__ import annotations

from dataclasses import dataclass

from haversack.bench._harness import Bench
from haversack.bench._native import NATIVE_FILES
from haversack.bench._rows import Unavailable
from haversack.core import index

MAKING_FILES = (
    "bench/edge_asr/_*.py",
    "shrink/*.py",
    "shrink/precision/*.py",
    "kernels/*.py",
    *NATIVE_FILES,
    "models/audio/*.py",
    "run/_speech*.py",
    "run/_hear.py",
    "run/layers/*.py",
    "reference_models/digits*/*",
)
"""What packs and the lines written of them depend on: rows may be added without making them anew."""
FILES = ("bench/edge_asr/*.py", *MAKING_FILES)

bench = Bench("edge-asr", number=16, watches=FILES)

MODELS = {"small": "digits-small", "base": "digits"}
"""The two sizes, and the bundled models that have them."""

GROUP = 32  # inputs that share a scale: 32 divides both models' widths, as the paper's Moonshine needs


@dataclass(frozen=True)
class Setting:
    """Bits of weights and of activations; 16-bit activations are f32 in our kernels and count as 16."""

    name: str
    bits: int
    activation_bits: int

    @property
    def activations(self) -> str:
        """The engine's activation type."""
        return "int8-dynamic" if self.activation_bits == 8 else "f32"


SETTINGS = {
    one.name: one
    for one in (
        Setting("w8a8", 8, 8),
        Setting("w4a16", 4, 16),
        Setting("w3a16", 3, 16),
        Setting("w4a8", 4, 8),
    )
}

NAMES = {
    "rtn": "round-to-nearest",
    "smoothquant": "smoothquant",
    "awq": "awq",
    "omniquant": "omniquant",
    "gptq": "gptq",
    "tesseraq": "tesseraq",
    "quik": "quik",
    "spqr": "spqr",
}
"""The eight methods and their names in the index."""

BETTER = ("gptq", "awq", "omniquant", "tesseraq", "spqr")
"""Those that the specification expects to beat rounding to nearest at 3 bits."""


def undefined(method: str, setting: Setting) -> str | None:
    """Why a method has no such setting, None where it has."""
    if method == "spqr" and (setting.activation_bits == 8 or setting.bits == 8):
        return "SpQR keeps single weights in float: it is defined for 3 and 4 bits with float activations"
    return None


def choice(method: str, setting: Setting) -> str:
    """The precision method with its parameters, as `pack --precision` takes it.

    Parameters that say what a method is fitted for follow the setting; all others stay at their defaults.
    Raises Unavailable where the method is not defined for the setting, or is not there or lacks the bits.
    """
    if (reason := undefined(method, setting)) is not None:
        raise Unavailable(reason)
    name = NAMES[method]
    known = {entry.name: entry for entry in index.methods("shrink", "precision")}
    if name not in known:
        raise Unavailable(f"there is no precision method {name} yet")
    parameters = {one.name: one for one in known[name].parameters}
    wanted = {"bits": setting.bits, "group": GROUP, "activations": setting.activations}
    if setting.bits == 8:
        del wanted["group"]
    chosen = []
    for field, value in wanted.items():
        if field not in parameters:
            continue
        allowed = parameters[field].allowed
        if allowed and value not in allowed:
            shown = ", ".join(str(one) for one in allowed)
            raise Unavailable(f"{name} has no {field}={value} (allowed {shown})")
        chosen.append(f"{field}={value}")
    return f"{name}:{','.join(chosen)}" if chosen else name
