"""Sorting a pack's tensors into its expert store while they stream by.

An expert is a record. Planes of bits, tensors NAME.planeN of its matrices, are a record each, of the part
planeN, behind that of everything else: each is one read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from haversack.core._record import FileEntry, TensorEntry
from haversack.core.expert_store import Given, StoreBody

if TYPE_CHECKING:
    from typing_extensions import Buffer

Owner = tuple[int, int] | tuple[int, int, str]
"""(block, expert), or (block, expert, part) where the expert's parts are records of their own."""
PLANE = "plane"


def part_of(name: str) -> str:
    """The part of its expert that the tensor `name` is stored in: the plane that it is of, or ""."""
    last = name.rpartition(".")[2]
    return last if last.startswith(PLANE) and last[len(PLANE) :].isdigit() else ""


class ExpertFile:
    """The store at `path` while a pack is written; `names` are the tensors that it has taken. `parts`: its
    records are parts of experts."""

    def __init__(self, path: Path, model: str, owners: Mapping[str, Owner]) -> None:
        self.model = model
        self._body = StoreBody(path, model)
        self._owners = owners
        self._missing: dict[Owner, set[str]] = {}
        for name, owner in owners.items():
            self._missing.setdefault(owner, set()).add(name)
        self._waiting: dict[Owner, list[Given]] = {}
        self.names: dict[str, None] = {}
        self.parts = any(len(owner) == 3 for owner in owners.values())

    def takes(
        self,
        name: str,
        kind: str,
        shape: tuple[int, ...],
        group: int | None,
        layout: str,
        chunks: Iterable[Buffer],
    ) -> bool:
        """Take the tensor `name` if it is an expert's, or a part of an expert's matrix; False if not."""
        whole = name if name in self._owners else name.rpartition(".")[0]
        owner = self._owners.get(whole)
        for other in [each for each in self._waiting if self._is_over(each, owner)]:
            self._write(other)
        if owner is None:
            return False
        if name in self.names:
            raise ValueError(f"the tensor {name} was given before")
        data = [memoryview(chunk).tobytes() for chunk in chunks]
        self.names[name] = None
        self._missing[owner].discard(whole)
        self._waiting.setdefault(owner, []).append((name, kind, shape, group, layout, data))
        if whole == name and not self._missing[owner]:
            self._write(owner)
        return True

    def close(self) -> tuple[FileEntry, tuple[TensorEntry, ...]]:
        """Complete the store: its entry in the pack, and its tensors. Raises ValueError when an expert is
        not whole."""
        for owner in list(self._waiting):
            self._write(owner)
        left = sorted(name for names in self._missing.values() for name in names)
        if left:
            raise ValueError(f"the experts' tensors {', '.join(left[:3])} were not given")
        entry = self._body.close()
        return entry, tuple(tensor for record in self._body.records for tensor in record.entries())

    def abandon(self) -> None:
        """Close the file as it is."""
        self._body.abandon()

    def _is_over(self, waiting: Owner, owner: Owner | None) -> bool:
        """Nothing more comes of `waiting` once the next tensor is `owner`'s: of another block, or, since the
        tensors of a part follow one another, of anything else."""
        return owner is None or waiting[0] != owner[0] or (self.parts and waiting != owner)

    def _write(self, owner: Owner) -> None:
        if self._missing[owner]:
            left = sorted(self._missing[owner])
            raise ValueError(f"the tensor {left[0]} belongs to an expert of which the rest was given before")
        parts: dict[str, list[Given]] = {}
        for given in self._waiting.pop(owner):
            parts.setdefault(owner[2] if len(owner) == 3 else part_of(given[0]), []).append(given)
        for part in sorted(parts, key=lambda each: each != ""):  # what is of no plane stands first
            self._body.add(owner[0], owner[1], parts[part], part)
