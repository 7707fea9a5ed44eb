"""Mapped weights: the kernels read the file where the page cache holds it.

Paper: none.
What is here: the file is mapped and nothing is copied, so a second process shares the pages and the system
may drop them.
Cost: reads in 4 KiB pages, 14-22 % slower on two threads than huge pages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from haversack.core.method import Method
from haversack.core.pack import TensorSource
from haversack.models._architecture import Architecture
from haversack.run._residency import AllHeld, Lines


@dataclass(frozen=True)
class Mapped(Method):
    name = "mapped"
    stage = "run"
    slot = "residency"
    paper = "-"
    summary = "The kernels read the mapped file; nothing is copied."
    provides = frozenset({"mapped-weights", "blocks-at-hand"})
    excludes = frozenset({"sealed-weights"})

    def planned(
        self, blocks: Sequence[int], top: int, files: int = 1, limit: int | None = None, aside: int = 0
    ) -> Lines:
        """All weights: their pages, or a copy where one is turned over, are resident once every block has
        run.
        """
        return (("weights, mapped", sum(blocks) + top),)

    def open(self, source: TensorSource, architecture: Architecture, limit: int | None = None) -> AllHeld:
        """Map the files and ask the system to read them ahead."""
        for path in source.files:
            if hasattr(os, "posix_fadvise"):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)
        return AllHeld(source, architecture)
