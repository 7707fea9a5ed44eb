"""Activation sparsity of a run: which rows read everything, and what the others were seen to read.

Only packs with matrices in the form row-sparse (run/forms/row_sparse.py) have any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels.sparse import channel_nbytes
from haversack.models._architecture import Architecture
from haversack.run._forms import Entry, forms_of

ROW_SPARSE = "row-sparse"
DRIFT = 0.05
"""Difference of the sparsity met and the one asked for from which a text counts as another domain."""


class Reading(Mapping[str, Any]):
    """A block's weights for a step of which the rows `reads` bool [n] take every input."""

    def __init__(self, weights: Mapping[str, Any], reads: npt.NDArray[np.bool_]) -> None:
        self._weights, self._reads = weights, reads

    def __getitem__(self, name: str) -> Any:
        found = self._weights[name]
        reading = getattr(found, "reading", None)
        return found if reading is None else reading(self._reads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Reading:
        """The same for the step's rows `rows` alone."""
        return Reading(self._weights, self._reads[rows])


def of_rows(weights: Any, rows: npt.NDArray[np.int64]) -> Any:
    """`weights` as the rows `rows` of a step take them."""
    return weights.of_rows(rows) if type(weights) is Reading else weights


class Tally:
    """Rows and active inputs of every row-sparse matrix, added up over a run."""

    def __init__(self, source: Any, architecture: Architecture) -> None:
        self.entries: dict[str, Entry] = {
            name: entry for name, entry in forms_of(source).items() if entry["form"] == ROW_SPARSE
        }
        self._blocks = [
            [linear.weight for linear in block.matrices() if linear.weight in self.entries]
            for block in architecture.blocks
        ]
        self.counts = {name: np.zeros(2, np.int64) for name in self.entries}

    def __bool__(self) -> bool:
        return bool(self.entries)

    def take(self, block: int, weights: Mapping[str, Any]) -> None:
        """Add what the matrices of `block` counted, and set their own counts to nothing."""
        for name in self._blocks[block]:
            if name not in weights:  # of an expert that is kept apart
                continue
            counts = weights[name].matrix.counts
            self.counts[name] += counts
            counts[:] = 0

    def clear(self) -> None:
        """Begin anew."""
        for counts in self.counts.values():
            counts[:] = 0

    def stats(self) -> dict[str, Any]:
        """What was met so far: for each matrix, and for all together.

        `active`: share of the inputs; `nbytes` of weights read by a token, of `dense` bytes; `sparsity`: the
        share not read, the low-rank product counted; `asked`: the sparsity of the pack's plan; `rows`: of
        inputs that were sparse. `drift`: what to do where met and asked differ, else None.
        """
        layers = [self._layer(name) for name in self.entries]
        seen = [layer for layer in layers if layer["rows"]]
        read, dense = sum(one["nbytes"] for one in seen), sum(one["dense"] for one in seen)
        met = 1 - read / dense if dense else None
        asked = sum(one["asked"] * one["dense"] for one in seen) / dense if dense else None
        drift = None
        if met is not None and asked is not None and abs(met - asked) > DRIFT:
            drift = (
                f"this text skips {met:.0%} of the weights where the pack was made for {asked:.0%}: it is "
                "unlike the calibration text; pack again with --calibration FILE of such text."
            )
        return {
            "rows": max((layer["rows"] for layer in layers), default=0),
            "nbytes": read,
            "dense": dense,
            "sparsity": met,
            "asked": asked,
            "drift": drift,
            "layers": layers,
        }

    def words(self) -> str:
        """The same in a line or two."""
        found = self.stats()
        if not found["rows"]:
            return "sparsity: no token behind the prompt"
        line = (
            f"sparsity: {found['sparsity']:.1%} of the blocks' weights skipped, {found['asked']:.1%} asked "
            f"for; {found['nbytes'] / 2**20:.1f} of {found['dense'] / 2**20:.1f} MiB read a token"
        )
        return f"{line}\n{found['drift']}" if found["drift"] else line

    def _layer(self, name: str) -> dict[str, Any]:
        entry = self.entries[name]
        (outputs, inputs), rank = entry["shape"], int(entry["rank"])
        rows, active = (int(count) for count in self.counts[name])
        share = active / (rows * inputs) if rows else None
        channel = channel_nbytes(str(entry["kind"]), outputs, entry.get("group"))
        read = (share or 0.0) * inputs * channel
        if rank:
            factors = str(entry["factors"])
            read += (1 - (share or 0.0)) * inputs * channel_nbytes(factors, rank)
            read += rank * channel_nbytes(factors, outputs)
        return {
            "name": name,
            "rows": rows,
            "active": share,
            "rank": rank,
            "nbytes": read,
            "dense": inputs * channel,
            "asked": float(entry.get("sparsity", 0.0)),
        }
