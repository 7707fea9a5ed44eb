"""One block before it is quantized, as a method's `transform` sees it: its tensors, the text on its way in,
and what may be folded from where into where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.kernels import Matrix, matmul
from haversack.models._observers import ChannelMoments
from haversack.shrink._activations import Activations
from haversack.shrink._rounding import F32
from haversack.shrink._transforms import Pair, fold

if TYPE_CHECKING:
    from haversack.shrink._pipeline import Walk


class BlockView:
    """Block `index` of `walk`.

    `tensors` holds every tensor of the block as f32, which may be changed in place; `states` the hidden
    states of the calibration text before it, a piece f32 [length, width] at a time.
    """

    def __init__(self, walk: Walk, index: int, tensors: dict[str, F32], states: Activations) -> None:
        self.walk, self.index, self.tensors, self.states = walk, index, tensors, states

    @property
    def pairs(self) -> Sequence[Pair]:
        """Producers and consumers between which scales may be folded, in order of use."""
        return self.walk.pairs(self.index)

    def weights(self, changed: dict[str, F32] | None = None) -> dict[str, Any]:
        """The tensors as the walk takes them, `changed` in place of those of the same name; nothing is
        copied."""
        return {
            name: Matrix.from_array(values) if self.walk.is_matrix(name) else values
            for name, values in {**self.tensors, **(changed or {})}.items()
        }

    def run(self, piece: int, tap: Callable[[str, F32], None] | None = None) -> F32:
        """Hidden states f32 [length, width] after the block, of piece number `piece` of the text."""
        return self.walk.run(self.index, self.states.read(piece), self.weights(), tap)

    def ranges(self) -> dict[str, ChannelMoments]:
        """Of every input of the block, by the first matrix that multiplies it: the ranges of its channels.

        One pass of the text through the block. Raises UserError, which names the matrix, for inputs that are
        not finite.
        """
        found = {
            group[0]: ChannelMoments(self.walk.shape(group[0])[1]) for group in self.walk.products(self.index)
        }

        def see(name: str, x: F32) -> None:
            if name in found:
                found[name].add(x)
                self._check(name, x)

        for piece in range(len(self.states)):
            self.run(piece, see)
        return found

    def inputs(self, name: str, tokens: int) -> list[F32]:
        """What whole pieces of the text, spread evenly and at most `tokens` tokens together (one piece at
        least), send into the matrix `name`: f32 [length, columns] each."""
        count = max(1, min(len(self.states), tokens // max(1, self.states.shape[1])))
        found: list[F32] = []

        def keep(product: str, x: F32) -> None:
            if product == name:
                self._check(name, x)
                found.append(x.copy())
                raise _Reached

        for piece in np.linspace(0, len(self.states) - 1, count).astype(int):
            try:
                self.run(int(piece), keep)
            except _Reached:
                continue
        return found

    def inspected(self, pair: Pair, x: F32, changed: dict[str, F32] | None = None) -> F32:
        """What `pair` is judged by, of the consumers' input x f32 [n, columns]: behind a norm the layers that
        hold the consumers, else their products side by side; `changed` tensors in place of the block's."""
        if pair.kind == "norm":
            return self.walk.inspect(self.index, pair, x, self.weights(changed))
        held = {**self.tensors, **(changed or {})}
        return np.concatenate([matmul(x, Matrix.from_array(held[name])) for name in pair.consumers], axis=1)

    def fold(
        self, pair: Pair, scale: NDArray[np.floating], shift: NDArray[np.floating] | None = None
    ) -> None:
        """Fold scales [channels] and shifts of `pair` into the block's tensors, in place and exactly."""
        fold(self.tensors, pair, scale, shift)

    def _check(self, name: str, x: F32) -> None:
        if not np.isfinite(x).all():
            raise UserError(
                f"calibration text gives inputs of {name} that are not finite; the model cannot be "
                "calibrated on it.",
                field="calibration",
                given=name,
            )


class _Reached(Exception):  # noqa: N818 - it is no error
    """Ends a pass at the input it waited for."""
