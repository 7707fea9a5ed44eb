"""Restoration on boards we do not own: TZ-LLM's pipeline as a simulation of discrete events.

Paper: "TZ-LLM: Protecting On-Device Large Language Models with Arm TrustZone" (2025, arXiv 2511.13717).
What is here: layers go through allocation (one at a time, under one lock), storage (one) and decryption,
taken by processors from the very queues that `run --residency sealed` uses (run/residency/_restoration.py),
while another engine computes layer after layer. A layer computes when it is restored and the one before is
done. Times come from sizes and the rates of a `Board`.
Constants: those that the paper reports for 8 GB on an Orange Pi 5 Plus (framework start 2.3 s, contiguous
memory up to 4.2 s, decryption 0.9 s, more than 11 s in all) give the rates of memory and cipher; the
storage's is what is left of the 11 s [inferred]. The rate of its four large cores in prefill is [assumed];
the accelerator's is 7.3 times it, as the paper reports.
What we changed: the paper's processors also help to compute; here computing is an engine of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from haversack.run.residency._restoration import Queues, order_key
from haversack.run.residency.sealed import Stages, unpipelined_s

SYSTEM = 29


@dataclass(frozen=True)
class Board:
    """Bytes a second of each stage, seconds of a start that is not saved, and 10^9 operations a second of
    computing with the processors and with the accelerator."""

    allocate_gb_s: float = 8.0 / 4.2
    read_gb_s: float = 8.0 / 3.6
    decrypt_gb_s: float = 8.0 / 0.9
    init_s: float = 2.3
    processor_gops: float = 120.0
    accelerator: float = 7.3

    def stages(self, model: Model, tokens: int, *, accelerated: bool) -> list[Stages]:
        """Of each layer of `model` for a prompt of `tokens`."""
        gops = self.processor_gops * (self.accelerator if accelerated else 1.0)
        size = model.gb / model.layers
        compute = 2.0 * model.weights_g / model.layers * tokens / gops
        return [
            Stages(size / self.allocate_gb_s, size / self.read_gb_s, size / self.decrypt_gb_s, compute)
        ] * model.layers


@dataclass(frozen=True)
class Model:
    """A model at 8 bits: 10^9 weights, layers, 10^9 bytes."""

    name: str
    weights_g: float
    layers: int

    @property
    def gb(self) -> float:
        """A byte a weight and an f16 scale for every 32 (Q8_0)."""
        return self.weights_g * 34 / 32


MODELS = (
    Model("TinyLlama-1.1B", 1.1, 22),
    Model("Gemma-2-2B", 2.6, 26),
    Model("Qwen2.5-3B", 3.1, 36),
    Model("Phi-3-3.8B", 3.8, 32),
    Model("Llama-3-8B", 8.0, 32),
)
"""Those of the paper; weights and layers from their cards."""


def first_token_s(layers: Sequence[Stages], *, workers: int = 1, kept: int = 0) -> float:
    """When the last layer is computed, the first `kept` being restored at the start: events in order of
    time.

    `workers` processors decrypt, or allocate where nothing waits for decryption; allocations exclude each
    other.
    """
    queues = Queues()
    restored = [0.0 if layer < kept else float("inf") for layer in range(len(layers))]
    for layer in range(kept, len(layers)):
        queues.put("allocate", order_key(layer, 0), layer)
    events: list[tuple[float, int, str, int]] = []
    free, storage_free, lock_free, number, now = workers, True, True, 0, 0.0
    while True:
        while free:
            task = queues.take("decrypt") or (queues.take("allocate") if lock_free else None)
            if task is None:
                break
            stage, _, layer = task
            free, lock_free, number = free - 1, lock_free and stage != "allocate", number + 1
            took = layers[layer].allocate if stage == "allocate" else layers[layer].decrypt
            events.append((now + took, number, stage, layer))
        if storage_free and (task := queues.read()) is not None:
            storage_free, number = False, number + 1
            events.append((now + layers[task[2]].read, number, "read", task[2]))
        if not events:
            break
        event = min(events)
        events.remove(event)
        now, _, stage, layer = event
        if stage == "allocate":
            free, lock_free = free + 1, True
            queues.put("read", order_key(layer, 0), layer)
        elif stage == "read":
            storage_free = True
            queues.put("decrypt", order_key(layer, 0), layer)
        else:
            free += 1
            restored[layer] = now
    done = 0.0
    for ready, one in zip(restored, layers, strict=True):
        done = max(done, ready) + one.compute
    return done


@dataclass(frozen=True)
class Shown:
    """First tokens of a model in seconds: nothing overlapped and computed by the processors, the pipeline
    with the accelerator, the pipeline with the processors."""

    model: Model
    unpipelined: float
    pipelined: float
    pipelined_by_processors: float

    @property
    def reduction(self) -> float:
        """The share of the first token's time that the pipeline saves."""
        return 1.0 - self.pipelined / self.unpipelined


def compared(model: Model, tokens: int = 128, board: Board | None = None) -> Shown:
    """`model` on `board` with a prompt of `tokens`."""
    board = board or Board()
    slow = board.stages(model, tokens, accelerated=False)
    fast = board.stages(model, tokens, accelerated=True)
    return Shown(
        model,
        unpipelined_s(slow, board.init_s),
        first_token_s(fast, workers=2),
        first_token_s(slow, workers=2),
    )
