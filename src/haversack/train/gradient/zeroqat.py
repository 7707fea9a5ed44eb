"""ZeroQAT: a language model trained as it will be used, with few bits, by forward passes alone.

Paper: "End-to-End On-Device Quantization-Aware Training for LLMs at Inference Cost" (arXiv 2509.00031, 2025).
What is here, with Q the rounding of weights and inputs to the bits of the plan:

    warm start   each block: s, d (smoothing) and a, b (clipping) that let the rounded block give what the
                 float one does; merged into the weights, so that using the model costs nothing more
    g = (L(Q(W + e u)) - L(Q(W - e u))) / (2 e),   W <- W - r g u,   u ~ N(0, 1) from a seed

The rounding runs again after every perturbation, so there is no gradient of a rounding to be guessed, and
what is lowered is the loss of the rounded model itself. |L+ - L-| counts at most 0.4. `full` moves every
matrix of the blocks, `weights+quant` also a, b and s. `light` rounds and packs everything once but query and
value of attention, which stay in f32, move, and are rounded in each pass: packed weights, these, and the
states of one block are all the memory there is. Objectives: the next token of plain text (pre-training), or
the answers of a table (fine-tuning). A run is the pack that `until=prepared` writes and its log of (step, g,
rate): `replay` gives the trained bits again.
What we changed: perturbations lie on a grid that restores every bit (_spsa.py); ranges hold 0 and D is kept
as f16, as the pack has it; `quant_move` says how far a, b and s move where a weight moves by 1; zo=quant
moves these alone, a few numbers a row. Shifts d and the place between query and key stay as the warm start
left them.
Cost: two forward passes a step and the rounding of what learns. The warm start needs PyTorch (extra
workshop); epochs=0, and everything after it, does not.
Limits: dense decoders; codes of 2 to 8 bits are stored (the form `nested` with one width, whose product reads
several times slower than int4's when many tokens pass at once). The engine has no 4-bit activations: a pack
trained for inputs=4 runs with f32 ones, which lose less. Defaults are the paper's,
second hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.train._network import Array, Network
from haversack.train._slots import Learned, Settings
from haversack.train.gradient._spsa import Spsa
from haversack.train.gradient._zeroqat_decoder import F32, Bits, RoundedDecoder
from haversack.train.gradient._zeroqat_grid import OFF, checked_bits
from haversack.train.gradient._zeroqat_tasks import Task

LOSS_CLIP = 0.4
"""The most that a difference of losses counts: |g| <= 0.2 / e."""


class Quantities:
    """a, b and s of a decoder as numbers that move beside its weights: what is moved is `moves`, from 0, and
    each of them moves its quantity by `by` as much."""

    def __init__(self, decoder: RoundedDecoder, by: float) -> None:
        self.decoder, self.by = decoder, by
        self.start = {name: clip.copy() for name, clip in decoder.clips.items()}
        self.moves: dict[str, F32] = {
            f"clip.{name}": np.zeros_like(clip) for name, clip in self.start.items()
        }
        self.moves |= {f"factor.{name}": np.zeros_like(one) for name, one in decoder.factors.items()}

    def put(self) -> None:
        """Let the decoder have them."""
        by = np.float32(self.by)
        for name, start in self.start.items():
            np.add(start, by * self.moves[f"clip.{name}"], out=self.decoder.clips[name])
        for name, factor in self.decoder.factors.items():
            np.multiply(by, self.moves[f"factor.{name}"], out=factor)


@dataclass
class History:
    """Both losses of every step that was taken or skipped."""

    plus: list[float] = field(default_factory=list)
    minus: list[float] = field(default_factory=list)


class ZeroQatStepper:
    """ZeroQAT at work in one decoder; see train/_slots.py, Stepper. A batch is (task, number of the step)."""

    def __init__(
        self,
        method: ZeroQat,
        decoder: RoundedDecoder,
        kind: str,
        seed: int,
        only: Mapping[str, F32] | None = None,
    ) -> None:
        self.decoder = decoder
        self.quantities = None
        masters = decoder.masters if only is None else only
        tensors: dict[str, F32] = {} if method.zo == "quant" else dict(masters)
        if method.moves_quantities(kind):
            self.quantities = Quantities(decoder, method.quant_move)
            tensors |= self.quantities.moves
        clip = LOSS_CLIP / (2 * method.eps)
        self.spsa = Spsa(tensors, eps=method.eps, seed=seed, restore="grid", clip=clip)
        self.history = History()

    def loss(self, task: Task, step: int) -> float:
        """Of the decoder as the tensors stand."""
        if self.quantities is not None:
            self.quantities.put()
        return task.loss(self.decoder, step)

    def step(self, batch: Any, rate: float) -> float:
        """See Stepper; a step whose loss is not finite is skipped and counted."""
        task, number = batch
        found = self.spsa.estimate_and_update(lambda: self.loss(task, number), rate)
        self.history.plus.append(found.plus)
        self.history.minus.append(found.minus)
        self.settle()
        return found.loss

    def settle(self) -> None:
        """Let the decoder have what the tensors hold."""
        if self.quantities is not None:
            self.quantities.put()

    def replay(self, log: npt.NDArray[Any]) -> None:
        """Make the changes of `log` on a decoder as it was prepared: the same bits."""
        self.spsa.replay(log)
        self.settle()

    def state(self) -> dict[str, Array]:
        """See Stepper."""
        return {
            **self.spsa.state(),
            "plus": np.array(self.history.plus),
            "minus": np.array(self.history.minus),
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """See Stepper: on a decoder as it was prepared."""
        log = np.zeros(len(state["log_step"]), self.spsa.log.dtype)
        for name in log.dtype.names or ():
            log[name] = state[f"log_{name}"]
        self.replay(log)
        self.spsa.step, self.spsa.skipped = (int(value) for value in state["counters"])
        self.history = History(state["plus"].tolist(), state["minus"].tolist())


def gradient_cosine(
    spsa: Spsa, loss: Callable[[], float], true: Mapping[str, F32], directions: int
) -> tuple[float, float]:
    """The cosine between the mean of g u over so many directions and `true` gradients, and the one that
    exact slopes would have on average, sqrt(k / (k + numbers + 1)). Leaves the tensors as they are."""
    total = {name: np.zeros(true[name].shape, np.float64) for name in true}
    first = spsa.step
    for step in range(first, first + directions):
        spsa.step = step
        with spsa.moving():
            spsa.move(1)
            plus = loss()
            spsa.move(-1)
            minus = loss()
        for name, sums in total.items():
            sums += (plus - minus) / (2 * spsa.eps) * spsa.direction(name, step)
    spsa.step = first
    inner = sum(float((total[name] * true[name]).sum()) for name in true)
    sizes = [math.sqrt(sum(float(np.square(one).sum()) for one in each.values())) for each in (total, true)]
    numbers = sum(each.size for each in true.values())
    expected = math.sqrt(directions / (directions + numbers + 1))
    return inner / max(sizes[0] * sizes[1], 1e-30), expected


@dataclass(frozen=True)
class ZeroQat(Method):
    name = "zeroqat"
    stage = "train"
    slot = "gradient"
    paper = (
        "End-to-End On-Device Quantization-Aware Training for LLMs at Inference Cost (arXiv 2509.00031, 2025)"
    )
    summary = "A rounded language model's own loss, lowered by two forward passes a step."
    system = 24

    exactness: ClassVar[int] = 2
    usual_rate: ClassVar[float] = 1e-6

    variant: str = parameter("full", allowed=("full", "light"), help="what learns: all, or query and value")
    bits: int = parameter(4, help="bits a weight, 2 to 16")
    inputs: int = parameter(4, help="bits of what matrices are given, 2 to 16; 16: not rounded")
    group: int | None = parameter(None, help="inputs that share a scale of weights (none: whole rows)")
    zo: str = parameter(
        "auto",
        allowed=("auto", "weights", "weights+quant", "quant"),
        help="what moves; auto: weights, and on plain text clipping and smoothing with them",
    )
    eps: float = parameter(1e-3, help="how far weights are moved, times a normal number")
    quant_move: float = parameter(10.0, help="how far a, b and log s move where a weight moves by 1")
    alpha: float | None = parameter(
        None, help="exponent of the first smoothing (none: 0.75 with shifts, 0.5 without)"
    )
    smooth: bool = parameter(True, help="smooth where inputs are rounded")
    epochs: int = parameter(2, help="passes of the warm start over the calibration text; 0: none")
    segments: int = parameter(128, help="texts to calibrate on")
    until: str = parameter(
        "trained", allowed=("trained", "prepared"), help="prepared: write what steps start from, and stop"
    )
    pretrain: bool = parameter(False, help="let variant=light learn from plain text, which it is not for")

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_bits("bits", self.bits)
        checked_bits("inputs", self.inputs)
        if 8 < self.bits < OFF:
            raise UserError(
                f"bits={self.bits} is not stored (packs hold codes of 2 to 8 bits, or floats); use bits=8.",
                field="bits",
                given=self.bits,
                nearest=8,
            )
        if self.group is not None and not 16 <= self.group <= 4096:
            raise UserError(
                f"group={self.group} is outside 16 to 4096.", field="group", given=self.group, nearest=64
            )
        for name in ("eps", "quant_move"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name}={value} is not above 0.", field=name, given=value, nearest=1e-3)
        if self.epochs < 0 or self.segments < 1:
            field_ = "epochs" if self.epochs < 0 else "segments"
            raise UserError(f"{field_}={getattr(self, field_)} is too small.", field=field_)
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UserError(
                f"alpha={self.alpha} is outside 0 to 1.", field="alpha", given=self.alpha, nearest=0.5
            )

    @property
    def rounding(self) -> Bits:
        """How the model is rounded."""
        return Bits(self.bits, self.inputs, self.group)

    def moves_quantities(self, kind: str) -> bool:
        """Whether a, b and s move on a task of `kind`."""
        if self.zo == "auto":
            return self.variant == "full" and kind == "text"
        return self.zo in ("weights+quant", "quant")

    def check(self, kind: str) -> None:
        """Raises UserError where the task is not what the variant is for."""
        if self.variant == "light" and kind == "text" and not self.pretrain:
            raise UserError(
                "variant=light is for fine-tuning on a table: on plain text it ends worse than the full one "
                "(perplexity 41 for 30 in the paper); use variant=full, or pretrain=true to do it anyway.",
                field="variant",
                given="light",
                nearest="full",
            )
        if self.variant == "light" and self.zo in ("weights+quant", "quant"):
            raise UserError(
                "variant=light keeps clipping and smoothing as they are; use zo=weights.",
                field="zo",
                given=self.zo,
                nearest="weights",
            )

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Gradient: none, since what it gives is a pack and no delta; it is asked for by name."""
        return ()

    def plan(self, network: Network, learned: Learned, rows: int) -> tuple[tuple[str, int], ...]:
        """See Gradient."""
        raise self._other()

    def begin(self, network: Network, learned: Learned, settings: Settings) -> ZeroQatStepper:
        """See Gradient."""
        raise self._other()

    def stepper(
        self, decoder: RoundedDecoder, kind: str, seed: int, only: Mapping[str, F32] | None = None
    ) -> ZeroQatStepper:
        """Ready for the first step on a decoder that was prepared; `only` of its masters move (None: all)."""
        return ZeroQatStepper(self, decoder, kind, seed, only)

    def _other(self) -> UserError:
        return UserError(
            "zeroqat trains a whole language model in few bits and writes a pack, not a delta; give a "
            "language model, and no other slot.",
            field="gradient",
            given="zeroqat",
            nearest="zeroth",
        )
