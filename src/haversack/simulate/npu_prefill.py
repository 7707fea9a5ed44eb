"""mllm-NPU's prefill on a phone we do not own: its schedules as a simulation of discrete events.

Paper: "Fast On-device LLM Inference with NPUs" (arXiv 2407.05858; ASPLOS 2025).
What is here: `simulate` plays a schedule of run/prefill/_schedule.py over given times, two processors, one
subgraph each; `phone_times` makes the times of a decoder's subgraphs from its sizes. The rules that choose
are the ones that `run --prefill chunked:shadow` runs.
Constants: of the paper's figures of one product, an int8 one on the processor takes 4.6 times as long as on
the accelerator, and a float one on the accelerator 193 times; a prompt length takes 0.36 s to build and
11.54 s to optimise (Gemma-2B). The accelerator's rate is set so that Qwen1.5-1.8B reads a thousand tokens a
second, as it reports [inferred]. That the processor computes floats at half of its int8 rate, and passes over
4 * 10^9 numbers a second, is [assumed].
Limits: no memory traffic, no cost of switching processors, no shadows of outliers but a share of the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from haversack.run.prefill._schedule import (
    FLOATS,
    INTEGERS,
    PROCESSORS,
    Place,
    Progress,
    Subgraph,
    Times,
    choose,
)

SYSTEM = 36

CPU_INT8, NPU_FLOAT = 4.6, 193.0
"""How many times as long as an int8 product on the accelerator one takes on the processor, and a float one on
the accelerator."""
BUILD_S, OPTIMISE_S = 0.36, 11.54


@dataclass(frozen=True)
class Event:
    """A subgraph at (chunk, index) that `processor` ran from `start` to `end`."""

    chunk: int
    index: int
    processor: str
    start: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """What was run when. `span`: until the last is done; `busy`: processor -> time at work."""

    events: tuple[Event, ...]

    @property
    def span(self) -> float:
        return max(event.end for event in self.events)

    def busy(self, processor: str) -> float:
        """Time that `processor` worked."""
        return sum(event.end - event.start for event in self.events if event.processor == processor)

    def idle(self, processor: str) -> float:
        """The share of its time, from its first subgraph to its last, that `processor` waited."""
        own = [event for event in self.events if event.processor == processor]
        window = max(event.end for event in own) - min(event.start for event in own)
        return 1.0 - self.busy(processor) / window if window > 0 else 0.0


def simulate(sequence: Sequence[Subgraph], times: Times, policy: str) -> Schedule:
    """The schedule of chunks through `sequence` by `policy`; `times` [chunks][subgraphs]."""
    progress = Progress(sequence, len(times))
    running: dict[str, tuple[float, Place]] = {}
    events: list[Event] = []
    now = 0.0
    while True:
        for processor in PROCESSORS:
            place = None if processor in running else choose(progress, processor, policy, times)
            if place is not None:
                progress.start(place)
                running[processor] = (now + times[place[0]][place[1]], place)
                events.append(Event(*place, processor, now, running[processor][0]))
        if not running:
            break
        now = min(end for end, _ in running.values())
        for processor, (end, place) in list(running.items()):
            if end == now:
                progress.finish(place)
                del running[processor]
    return Schedule(tuple(events))


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder: `layers` of `width`, `inner` of the feed-forward layer, which has a gate."""

    name: str = "Qwen1.5-1.8B"
    layers: int = 24
    width: int = 2048
    inner: int = 5504


@dataclass(frozen=True)
class Phone:
    """10^9 products a second in int8 on the accelerator, and numbers a second that the processor passes over;
    `outliers`: the share of inputs that are added in floats."""

    npu_gmacs: float = 1300.0
    passes_g: float = 4.0
    outliers: float = 0.003

    def ms(self, gmacs: float, processor: str, *, floats: bool) -> float:
        """Milliseconds of 10^9 * `gmacs` products on a processor, by the paper's ratios."""
        int8 = gmacs / self.npu_gmacs * 1e3
        if processor == INTEGERS:
            return int8 * (NPU_FLOAT if floats else 1.0)
        return int8 * CPU_INT8 * (2.0 if floats else 1.0)

    def place(self, gmacs: float, *, floats: bool) -> str:
        """The processor that is faster."""
        return min(PROCESSORS, key=lambda one: self.ms(gmacs, one, floats=floats))


def layer_sequence(layers: int) -> list[Subgraph]:
    """The published cut of every layer: norm and quantization; query, key and value; rotation, cache,
    attention and quantization; output, norm and feed-forward."""
    layer = [
        Subgraph(FLOATS, label="norm"),
        Subgraph(INTEGERS, label="query, key, value"),
        Subgraph(FLOATS, attention=True, label="attention"),
        Subgraph(INTEGERS, label="output, feed-forward"),
    ]
    return layer * layers


def phone_times(model: Decoder, chunks: int, tokens: int, phone: Phone | None = None) -> list[list[float]]:
    """Milliseconds of each subgraph of `layer_sequence`, of `chunks` chunks of `tokens`."""
    phone = phone or Phone()
    square, wide = model.width**2 * tokens / 1e9, model.width * model.inner * tokens / 1e9
    passed = model.width * tokens / (phone.passes_g * 1e9) * 1e3
    shadows = phone.outliers * phone.ms(4 * square + 3 * wide, FLOATS, floats=True)
    found = []
    for chunk in range(chunks):
        seen = (chunk + 0.5) * tokens
        attention = phone.ms(2 * model.width * seen * tokens / 1e9, FLOATS, floats=True)
        layer = [
            passed,
            phone.ms(3 * square, INTEGERS, floats=False),
            attention + 3 * passed + shadows,
            phone.ms(square + 3 * wide, INTEGERS, floats=False),
        ]
        found.append(layer * model.layers)
    return found


def preparation_s(shapes: int) -> float:
    """Seconds that building and optimising the graphs of so many shapes takes."""
    return shapes * (BUILD_S + OPTIMISE_S)
