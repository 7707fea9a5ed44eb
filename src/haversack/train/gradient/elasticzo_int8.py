"""ElasticZO-INT8: the split of ElasticZO in integers alone; what counts of two losses is which is larger.

Paper: Sugiura and Matsutani, "ElasticZO" (arXiv 2501.04287, 2025), on NITI (arXiv 2009.13108, 2020). Steps,
schedules and defaults are recalled, cross-entropy in integers is inferred (train/_niti.py).
What is here: weights are int8 mantissas m whose exponents stay.
  z = k v, v a whole number even within -r_max..r_max, k = 1 with probability 1 - p_zero, else 0
  1. m + z for blocks 1..C, forward: loss+     2. m - z, forward: loss-     3. m again
  4. g = sign(loss+ - loss-), both losses in integers
  5. m <- m - g round(z), for blocks 1..C: |z| brought to b_zo bits by pseudo-stochastic rounding
  6. m <- m - round(gradient) above C: the gradient of the second pass, by the way back in integers, with b_bp
     bits in its largest number
all within -127..127. p_zero goes 0.33, 0.5, 0.9 and b_bp 5, 4, 3 through the thirds of a training unless they
are given. A word of random bits (_spsa.py) makes two numbers: of each half, the upper 16 bits decide on k,
the lower 16 times (2 r_max + 1), shifted right by 16, less r_max, are v.
Restore: a number within |z| of either end would be clipped. With `exact` it does not move in this step: one
bit for each number says which do, and m comes back to the bit; its update still counts. With `clip`, as in
the paper, it is clipped on the way and comes back as another number.
The log has the sign of each step with r_max, p_zero and b_zo, 14 bytes; `replay` makes the zeroth-order part
of a trained network again from it.
Cost: inference in integers twice, an eighth of a byte for each number; of the last blocks gradients and
errors.
Limits: networks of integers (networks/integers.py). Steps are whole mantissas, so the training's rate has
no part in them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.core.method import Method, parameter
from haversack.train._network import Array, Batch, Network, Wanted
from haversack.train._niti import I8, LARGEST, pseudo_rounded, require_integers, sign_of
from haversack.train._slots import Learned, Settings
from haversack.train.gradient._spsa import pieces, words
from haversack.train.gradient.elasticzo import split
from haversack.train.gradient.zeroth import scratch_nbytes

P_ZERO, B_BP = (0.33, 0.5, 0.9), (5, 4, 3)
"""By thirds of a training."""
LOG = np.dtype([("step", "<u8"), ("sign", "i1"), ("r_max", "i1"), ("p_zero", "<u2"), ("b_zo", "<u2")])


def draws(seed: int, step: int, tensor: int, start: int, count: int, r_max: int, p_zero: int) -> I8:
    """Numbers `start` to `start + count` of z, int8 [count]; `p_zero` in units of 2^-16."""
    first, last = start // 2, -(-(start + count) // 2)
    word = words(seed, step, tensor, first, last - first).astype("<u8", copy=False)
    halves = word.view("<u4")[start % 2 :][:count]
    value = ((halves & np.uint32(0xFFFF)) * np.uint32(2 * r_max + 1)) >> np.uint32(16)
    found = value.astype(np.int8)
    found -= np.int8(r_max)
    found *= halves >= np.uint32(p_zero << 16)
    return found


def step_table(r_max: int, b_zo: int) -> I8:
    """The update for z = -r_max..r_max, int8 [2 r_max + 1]: z with b_zo bits in its largest number."""
    z = np.arange(-r_max, r_max + 1, dtype=np.int32)
    rounded = pseudo_rounded(z, max(0, r_max.bit_length() - b_zo))
    return np.clip(rounded, 1 - (1 << b_zo), (1 << b_zo) - 1).astype(np.int8)


class IntegerSpsa:
    """Moves int8 `tensors`, which share the network's memory, along z and back; see the file's head.

    Raises UserError for other tensors.
    """

    def __init__(self, tensors: Mapping[str, Array], *, seed: int, restore: str = "exact") -> None:
        for name, array in tensors.items():
            require_integers(array, name)
        if restore not in ("exact", "clip"):
            raise not_allowed("restore", restore, ("exact", "clip"))
        self.tensors, self.seed, self.exact = dict(tensors), seed, restore == "exact"
        self.step, self.at = 0, 0
        self.r_max, self.p_zero = 15, 0
        self.clipped = 0
        """Numbers that were near an end when they were to move, over all steps."""
        self._moved = {
            name: np.empty(-(-array.size // 8), np.uint8) for name, array in tensors.items() if self.exact
        }
        self._log: list[tuple[int, int, int, int, int]] = []

    @property
    def nbytes(self) -> int:
        """Bytes kept beside the tensors: a bit for each number."""
        return sum(bits.nbytes for bits in self._moved.values())

    def move(self, side: int) -> None:
        """Bring the tensors to m + side z of this step; 0 restores them."""
        if side == self.at:
            return
        for number, (name, array) in enumerate(self.tensors.items()):
            for start, part in pieces(array):
                z = self._z(number, start, part)
                if self.exact:
                    moved = self._which(name, start, part, z)
                    z *= moved
                wide = part.astype(np.int16)
                wide += np.int16(side - self.at) * z
                part[...] = np.clip(wide, -LARGEST, LARGEST)
        self.at = side

    def _which(self, name: str, start: int, part: I8, z: I8) -> NDArray[np.bool_]:
        """Which numbers move; decided before the first move, kept as bits until the last."""
        place = slice(start // 8, -(-(start + part.size) // 8))
        if self.at == 0:
            far = np.abs(part.astype(np.int16)) + np.abs(z.astype(np.int16)) <= LARGEST
            self.clipped += far.size - int(np.count_nonzero(far))
            self._moved[name][place] = np.packbits(far)
            return far
        return np.unpackbits(self._moved[name][place], count=part.size).astype(bool).reshape(part.shape)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Restores the tensors at the end, whatever happens inside."""
        try:
            yield
        finally:
            self.move(0)

    def update(self, sign: int, b_zo: int) -> None:
        """m <- m - sign round(z), noted in the log; on to the next step."""
        self._log.append((self.step, sign, self.r_max, self.p_zero, b_zo))
        if sign:
            table = step_table(self.r_max, b_zo)
            for number, array in enumerate(self.tensors.values()):
                for start, part in pieces(array):
                    change = table[self._z(number, start, part).astype(np.intp) + self.r_max]
                    wide = part.astype(np.int16)
                    wide -= np.int16(sign) * change
                    part[...] = np.clip(wide, -LARGEST, LARGEST)
        self.step += 1

    def _z(self, number: int, start: int, part: I8) -> I8:
        found = draws(self.seed, self.step, number, start, part.size, self.r_max, self.p_zero)
        return found.reshape(part.shape)

    @property
    def log(self) -> NDArray[Any]:
        """One record a step: LOG."""
        return np.array(self._log, LOG)

    def replay(self, log: NDArray[Any]) -> None:
        """Make the changes of `log` on the tensors as they were when its training began. With restore=clip
        the passes changed them too, which no log can make again: refused."""
        if log.dtype != LOG or log.ndim != 1:
            raise UserError(f"a log is a list of {LOG}, not {log.dtype}.", field="log", given=str(log.dtype))
        if not self.exact:
            raise UserError(
                "a training with restore=clip cannot be played again from signs.",
                field="restore",
                given="clip",
                nearest="exact",
            )
        for step, sign, r_max, p_zero, b_zo in log.tolist():
            if step != self.step or sign not in (-1, 0, 1) or not 0 < r_max <= 63 or not 0 < b_zo <= 6:
                raise UserError(
                    f"the log does not go on at step {self.step}; give the log of a whole training.",
                    field="log",
                    given=step,
                    nearest=self.step,
                )
            self.r_max, self.p_zero = r_max, p_zero
            self.update(sign, b_zo)

    def state(self) -> dict[str, Array]:
        """Everything but the tensors."""
        log = self.log
        return {
            "counters": np.array([self.step, self.clipped], np.int64),
            **{f"log_{field}": np.ascontiguousarray(log[field]) for field in LOG.names or ()},
        }

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Go on from `state`; the tensors hold what they held then."""
        self.step, self.clipped = (int(value) for value in state["counters"])
        self._log = list(zip(*(state[f"log_{field}"].tolist() for field in LOG.names or ()), strict=True))


@dataclass(frozen=True)
class ElasticZOInt8(Method):
    name = "elasticzo-int8"
    stage = "train"
    slot = "gradient"
    paper = "Sugiura and Matsutani, ElasticZO (2025)"
    summary = "ElasticZO in integers alone: int8 weights, and the sign of two integer losses."
    system = 31

    exactness: ClassVar[int] = 1
    usual_rate: ClassVar[float] = 1.0

    backprop_layers: str = parameter(
        "2", help="blocks at the end that learn by the way back: a count, or all"
    )
    split: str | None = parameter(None, help="in its place: the first block that learns by the way back")
    r_max: int = parameter(15, allowed=(1, 3, 7, 15, 31), help="the largest perturbation, in mantissas")
    p_zero: float | None = parameter(None, help="share not perturbed (none: 0.33, 0.5, 0.9 by thirds)")
    b_zo: int = parameter(1, allowed=(1, 2, 3, 4), help="bits of a zeroth-order step")
    b_bp: int | None = parameter(
        None, help="bits of a step of the last blocks, 1 to 7 (none: 5, 4, 3 by thirds)"
    )
    restore: str = parameter(
        "exact", allowed=("exact", "clip"), help="numbers near an end stay, for a bit each; or are clipped"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backprop_layers != "all" and not self.backprop_layers.isdecimal():
            raise not_allowed("backprop_layers", self.backprop_layers, (0, 1, 2, 3, "all"))
        if self.p_zero is not None and not 0 <= self.p_zero < 1:
            raise UserError(
                f"p_zero={self.p_zero} is not from 0 to below 1.",
                field="p_zero",
                given=self.p_zero,
                nearest=0.9,
            )
        if self.b_bp is not None and not 1 <= self.b_bp <= 7:
            raise not_allowed("b_bp", self.b_bp, range(1, 8))

    def offers(self, network: Network) -> tuple[str, ...]:
        """See Gradient."""
        return ("elasticzo-int8",) if hasattr(network, "integer_gradients") else ()

    def plan(self, network: Network, learned: Learned, rows: int) -> tuple[tuple[str, int], ...]:
        """See Gradient."""
        low, last = self._split(network, learned)
        tensors = network.tensors()
        bits = sum(-(-tensors[name].size // 8) for name in low) if self.restore == "exact" else 0
        lines = (
            *network.plan(last, rows),
            ("which numbers move", bits),
            ("random numbers", scratch_nbytes(network, low)),
        )
        return tuple(line for line in lines if line[1])

    def begin(self, network: Network, learned: Learned, settings: Settings) -> ElasticInt8Stepper:
        """See Gradient."""
        low, last = self._split(network, learned)
        tensors = network.tensors()
        spsa = IntegerSpsa({name: tensors[name] for name in low}, seed=settings.seed, restore=self.restore)
        return ElasticInt8Stepper(self, network, spsa, tuple(last), settings.steps)

    def _split(self, network: Network, learned: Learned) -> tuple[Wanted, Wanted]:
        if not hasattr(network, "integer_gradients"):
            raise UserError(
                f"{network.name} is no network of integers; use gradient elasticzo with it.",
                field="gradient",
                given=self.name,
                nearest="elasticzo",
            )
        parts = [name for name, part in learned.wanted.items() if part is not None]
        if parts:
            raise UserError(
                f"of {parts[0]} only a part learns, and integers learn whole tensors; use parameters all or "
                "head.",
                field="parameters",
                given=parts[0],
                nearest="all",
            )
        for name in learned.wanted:
            require_integers(network.tensors()[name], name)
        return split(network, learned.wanted, self.backprop_layers, self.split)


class ElasticInt8Stepper:
    """See train/_slots.py, Stepper. `spsa.log` replays what learned by zeroth order."""

    def __init__(
        self, method: ElasticZOInt8, network: Any, spsa: IntegerSpsa, last: tuple[str, ...], steps: int
    ) -> None:
        self.method, self.network, self.spsa, self.last, self.steps = method, network, spsa, last, steps
        self.losses = (0, 0)
        """Both losses of the last step, in units of 2^-15 bits."""

    def _third(self) -> int:
        return min(2, 3 * self.spsa.step // max(1, self.steps))

    def step(self, batch: Batch, rate: float) -> float:
        """See Stepper; `rate` has no part in steps of whole mantissas."""
        from haversack.train.networks.integers import nats

        method, spsa = self.method, self.spsa
        p_zero = P_ZERO[self._third()] if method.p_zero is None else method.p_zero
        b_bp = B_BP[self._third()] if method.b_bp is None else method.b_bp
        spsa.r_max, spsa.p_zero = method.r_max, round(p_zero * 65536)
        plus = None
        with spsa.moving():
            if spsa.tensors:
                spsa.move(1)
                plus = self.network.integer_loss(batch)
                spsa.move(-1)
            minus, gradients = self.network.integer_gradients(batch, self.last, b_bp)
        self.losses = (minus if plus is None else plus, minus)
        tensors = self.network.tensors()
        for name, change in gradients.items():
            wide = tensors[name].astype(np.int16)
            wide -= change
            tensors[name][...] = np.clip(wide, -LARGEST, LARGEST)
        spsa.update(sign_of(*self.losses), method.b_zo)
        loss = nats(sum(self.losses), 2 * len(batch))
        return loss if math.isfinite(loss) else math.nan

    def state(self) -> dict[str, Array]:
        """See Stepper."""
        return self.spsa.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """See Stepper."""
        self.spsa.set_state(state)
