"""The number types of GGUF: their codes, and how many numbers and bytes a block of each has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """One number type: `code` in the file, `numbers` and `nbytes` of a block; `name` is our kind for it."""

    code: int
    name: str
    numbers: int
    nbytes: int

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor [..., columns]. Raises ValueError when a row is no whole number of blocks."""
        columns = shape[-1] if shape else 1
        if columns % self.numbers:
            raise ValueError(
                f"a row of {columns} numbers is no whole number of {self.name} blocks ({self.numbers} each)"
            )
        return math.prod(shape) // self.numbers * self.nbytes


_TABLE = """
0 f32 1 4 | 1 f16 1 2 | 2 q4_0 32 18 | 3 q4_1 32 20 | 6 q5_0 32 22 | 7 q5_1 32 24 | 8 q8_0 32 34
10 q2_k 256 84 | 11 q3_k 256 110 | 12 q4_k 256 144 | 13 q5_k 256 176 | 14 q6_k 256 210
15 q8_k 256 292 | 16 iq2_xxs 256 66 | 17 iq2_xs 256 74 | 18 iq3_xxs 256 98 | 19 iq1_s 256 50 | 20 iq4_nl 32 18
21 iq3_s 256 110 | 22 iq2_s 256 82 | 23 iq4_xs 256 136 | 24 i8 1 1 | 25 i16 1 2
26 i32 1 4 | 27 i64 1 8 | 28 f64 1 8
29 iq1_m 256 56 | 30 bf16 1 2 | 34 tq1_0 256 54 | 35 tq2_0 256 66 | 39 mxfp4 32 17
"""


def _read_table() -> dict[int, BlockType]:
    found = {}
    for entry in _TABLE.strip().replace("\n", "|").split("|"):
        code, name, numbers, nbytes = entry.split()
        found[int(code)] = BlockType(int(code), name, int(numbers), int(nbytes))
    return found


TYPES: dict[int, BlockType] = _read_table()
"""Code -> type; the codes between were withdrawn by the format's makers, or serve products only (Q8_1)."""
BY_NAME: dict[str, BlockType] = {kind.name: kind for kind in TYPES.values()}

PLAIN = ("f32", "f16", "bf16")
"""Types whose rows the kernels read where they lie."""
STORED = {"q8_0": ("int8", 32), "q4_0": ("int4", 32)}
"""Block types that are one of our kinds in groups of 32, number for number."""
GROUP = 32
