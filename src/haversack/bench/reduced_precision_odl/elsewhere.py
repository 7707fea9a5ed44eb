"""Claims about the paper's own cores, each with the reason why no row here can be measured."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Outcomes, Row, Unavailable
from haversack.bench.reduced_precision_odl._bench import bench


@bench.measure(
    Row("board-ratio", "16-bit pairs beside 32 bits, one step of a convolution on the core", "cycles", "time",
        published="up to 1.72x"),
    Row("board-efficiency", "products a cycle, ResNet8 and DS-CNN on 8 cores", "products", "time",
        published="3.11 and 0.81"),
    Row("board-latency", "a step of one example, ResNet8 and DS-CNN", "ms", "time", published="17.1 and 6.4"),
    Row("board-previous", "beside the earlier 32-bit library on 8 cores", "cycles", "time", published="1.6x"),
    seconds=1,
)  # fmt: skip
def elsewhere(run: Run) -> Outcomes:
    reason = Unavailable(
        "a PULP cluster of 8 cores and a controller is not to be had here; no emulator of it counts cycles"
    )
    return {name: reason for name in ("board-ratio", "board-efficiency", "board-latency", "board-previous")}
