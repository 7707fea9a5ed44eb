"""What a pipeline's model is made of: its senses, the sizes of its networks, the space of configurations.

The published networks are 512 wide (ResNets 18, 34 and 50 as frame encoders); these are the same shapes at
the scale of a small processor: WIDTH and HIDDEN in place of 512 and 1024, three encoders a sense."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH, HIDDEN = 32, 48
SIZES = ("small", "medium", "large")
VIDEO_MODELS: dict[str, tuple[tuple[int, int], ...]] = {
    "small": ((4, 2), (8, 2), (12, 2)),
    "medium": ((12, 2), (24, 2), (40, 2)),
    "large": ((24, 2), (48, 2), (96, 2)),
}
"""Of each convolution of kernel 3: channels, stride."""
AUDIO_MODELS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "small": ((12, 5, 2), (24, 5, 2)),
    "medium": ((20, 5, 2), (32, 5, 2), (48, 3, 1)),
    "large": ((32, 5, 2), (48, 5, 2), (64, 3, 1), (96, 3, 1)),
}
"""Of each convolution: channels, kernel, stride; a maximum over two follows each."""
CHECKPOINTS = (0.5, 0.7, 0.9)
"""Shares of the planned frames at which the gate may stop the slow sense."""


@dataclass(frozen=True)
class Sense:
    """A stream of units. `rate`: frames or samples a second as sensed; `shape` of one frame or sample;
    `window_s`: how long it is sensed; `units`: what may be chosen, frames a second or samples a chunk."""

    name: str
    kind: str
    rate: float
    shape: tuple[int, ...]
    window_s: float
    units: tuple[int, ...]

    @property
    def length(self) -> int:
        """Frames or samples in a whole window."""
        return round(self.rate * self.window_s)


@dataclass(frozen=True)
class Shape:
    """A model's record: the slow sense (frames), the fast one (samples), the words for its classes, the sizes
    of its encoders in the order of the accuracy table, the gate's cut, the usual evidence (the median of s
    over the table's recordings; None: the predictor's answers are taken as they are)."""

    slow: Sense
    fast: Sense
    labels: tuple[str, ...]
    sizes: tuple[str, ...] = SIZES
    gate_cut: float = 0.5
    usual_evidence: float | None = None

    @property
    def senses(self) -> tuple[Sense, Sense]:
        """The slow sense, then the fast one."""
        return self.slow, self.fast
