"""Simultaneous perturbation: the slope of a loss along one random direction, from two forward passes.

Papers: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation" (1992); Malladi et al., "Fine-Tuning Language Models with Just Forward Passes" (arXiv
2305.17333, 2023), whose seeds in the place of stored directions this keeps.
What is here: named arrays that share a network's memory are moved to w + eps u, to w - eps u and back, and
then by -rate g u with g = (loss+ - loss-) / (2 eps). The direction u is never stored: each number of it is a
function of (seed, step, tensor, place), so tensors can be moved in any order, piece by piece, and a training
can be played again from its log of (step, g, rate), 24 bytes a step, bit for bit.

The numbers. Word i of a stream is 64-bit word i mod 4 of Philox4x64-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011) with key (seed, tensor) and counter (1 + i div 4, 0, step, stream). A word
becomes a nearly normal number in integers: V = 2 (65536 b + r) - 3211263, b the number of ones among its
upper 48 bits, r its lower 16 bits; then one product in f32, u = V / 455625.57. Mean 0, variance 1, excess
kurtosis -0.04, |u| <= 7.05. C, or any other language, repeats it to the bit: no logarithm, no table.

Exact restore, in one of two ways:
  `grid`: each tensor's numbers become multiples of a power of two (24 bits for f32, 53 for f64, the smallest
  that holds the largest of them and the perturbation), once, when the training begins: a change of at most
  half a step, 2^-25 of the largest number. eps u is rounded to whole steps, so that every sum is exact and
  moving back gives the very bits, for no memory at all. The update is rounded to whole steps up or down at
  random (a stream of its own), so that small updates are not lost on average.
  `copy`: a copy of the tensors is kept; any float, unchanged, for as many bytes as what is perturbed.
Cost: three passes of making random numbers a step, four with `grid`; scratch of at most 256 KiB.
Limits: one direction a step; f32 and f64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.train._network import Slice

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
Floats = NDArray[Any]

RESTORES = ("grid", "copy")
PIECE = 1 << 13
"""Numbers made at once."""
DIRECTION, ROUNDING = 0, 1
"""Streams of words."""
CENTRE = 3211263
SCALE = np.float32(1.0 / math.sqrt(48 * 65536**2 + (65536**2 - 1) / 3))
LARGEST = 8.0
"""No |u| is larger."""
DIGITS = {np.dtype(np.float32): 24, np.dtype(np.float64): 53}
FEWEST_STEPS = 256
"""Steps of the grid, or of the float, that eps has at least: below, a direction is mostly rounding."""
LOG = np.dtype([("step", "<u8"), ("g", "<f8"), ("rate", "<f8")])


def words(seed: int, step: int, tensor: int, start: int, count: int, stream: int = DIRECTION) -> U64:
    """Words `start` to `start + count` of a stream."""
    key = np.array([seed, tensor], np.uint64)
    # numpy counts up before its first block, hence the 1 in the docstring's counter
    counter = np.array([start // 4, 0, step, stream], np.uint64)
    skipped = start % 4
    raw: U64 = np.random.Philox(key=key, counter=counter).random_raw(skipped + count)
    return raw[skipped:]


def ones(bits: U64) -> U64:
    """How many bits of each word are set; overwrites `bits`."""
    spare = bits >> np.uint64(1)
    spare &= np.uint64(0x5555555555555555)
    bits -= spare
    np.right_shift(bits, np.uint64(2), out=spare)
    spare &= np.uint64(0x3333333333333333)
    bits &= np.uint64(0x3333333333333333)
    bits += spare
    np.right_shift(bits, np.uint64(4), out=spare)
    bits += spare
    bits &= np.uint64(0x0F0F0F0F0F0F0F0F)
    bits *= np.uint64(0x0101010101010101)
    bits >>= np.uint64(56)
    return bits


def normals(seed: int, step: int, tensor: int, start: int, count: int) -> F32:
    """Numbers `start` to `start + count` of the direction of one tensor, f32 [count]."""
    word = words(seed, step, tensor, start, count)
    low = (word & np.uint64(0xFFFF)).astype(np.int32)
    whole = ones(word >> np.uint64(16)).astype(np.int32)
    whole <<= 17
    whole += 2 * low - CENTRE
    found = whole.astype(np.float32)
    found *= SCALE
    return found


def thresholds(seed: int, step: int, tensor: int, start: int, count: int) -> F32:
    """Numbers evenly within 0..1 by which updates are rounded: 16 bits each, four a word, low bits first."""
    first, last = start // 4, -(-(start + count) // 4)
    word = words(seed, step, tensor, first, last - first, ROUNDING)
    lanes = word.astype("<u8", copy=False).view("<u2")[start % 4 :][:count]
    found = lanes.astype(np.float32)
    found += np.float32(0.5)
    found *= np.float32(1 / 65536)
    return found


def slope(plus: float, minus: float, eps: float, clip: float | None = None) -> float:
    """g, within -clip..clip."""
    g = (plus - minus) / (2 * eps)
    return g if clip is None else min(max(g, -clip), clip)


def grid_exponent(largest: float, eps: float) -> int:
    """The smallest e with largest + LARGEST eps <= 2^e."""
    fraction, exponent = math.frexp(largest + LARGEST * eps)
    return exponent - 1 if fraction == 0.5 else exponent


def pieces(array: Floats, part: Slice | None = None) -> Iterator[tuple[int, Floats]]:
    """(place of its first number, values) of pieces of about PIECE numbers, in C order. Who writes into the
    values changes `array`: they are views of it or, of a `part` of it, put back when the next is asked
    for."""
    if part is not None:
        values = part.of(array)
        yield from pieces(values)
        part.put(array, values)
        return
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        for start in range(0, flat.size, PIECE):
            yield start, flat[start : start + PIECE]
        return
    row = math.prod(array.shape[1:])
    rows = max(1, PIECE // max(1, row))
    for start in range(0, len(array), rows):
        yield start * row, array[start : start + rows]


@dataclass(frozen=True)
class Estimate:
    """One step: the losses of both passes, the slope that was used; None where a loss was not finite and
    nothing was changed."""

    plus: float
    minus: float
    g: float | None

    @property
    def loss(self) -> float:
        """The mean of both, which is the loss in the middle but for eps^2."""
        return (self.plus + self.minus) / 2


class Spsa:
    """Moves `tensors` along random directions and back.

    tensors: name -> f32 or f64 array that shares the network's memory; the order counts, since a tensor's
    number is part of its direction. `parts`: the part of a tensor that moves, where it is not all of it.
    Raises UserError for an eps that is not above 0 or drowns in rounding, an unknown `restore`, a clip that
    is not above 0, arrays of other types or that cannot be written to.
    """

    def __init__(
        self,
        tensors: Mapping[str, Floats],
        *,
        eps: float,
        seed: int,
        restore: str = "grid",
        clip: float | None = None,
        parts: Mapping[str, Slice | None] | None = None,
    ) -> None:
        self.tensors, self.eps, self.seed, self.restore, self.clip = dict(tensors), eps, seed, restore, clip
        self.parts = {name: (parts or {}).get(name) for name in self.tensors}
        self.step = 0
        """Number of the next step."""
        self.skipped = 0
        """Steps whose loss was not finite."""
        self.at = 0
        self._log: list[tuple[int, float, float]] = []
        self._check()
        self._exponents: dict[str, int] = {}
        self._copies: dict[str, Floats] = {}
        if restore == "grid":
            for name in self.tensors:
                self._put_on_grid(name, grid_exponent(self._largest(name), eps))
        else:
            for name, array in self.tensors.items():
                size = sum(part.size for _, part in self._pieces(name))
                self._copies[name] = np.empty(size, array.dtype)

    def _check(self) -> None:
        if self.restore not in RESTORES:
            raise not_allowed("restore", self.restore, RESTORES)
        if not self.eps > 0 or not math.isfinite(self.eps):
            raise UserError(
                f"eps={self.eps} is not above 0; the slope is taken over twice that distance.",
                field="eps",
                given=self.eps,
                nearest=1e-3,
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip={self.clip} is not above 0.", field="clip", given=self.clip)
        if not 0 <= self.seed < 1 << 64:
            raise UserError(
                f"seed={self.seed} is outside 0..2^64 - 1.", field="seed", given=self.seed, nearest=0
            )
        for name, array in self.tensors.items():
            if array.dtype not in DIGITS:
                raise UserError(
                    f"{name} is {array.dtype}; perturbing wants float32 or float64, since narrower "
                    "numbers lose small steps.",
                    field=name,
                    given=str(array.dtype),
                    nearest="float32",
                )
            if not array.flags.writeable:
                raise UserError(f"{name} is read-only; give an array of the network's own.", field=name)
            largest = self._largest(name)
            if not math.isfinite(largest):
                raise UserError(f"{name} holds numbers that are not finite.", field=name, given=largest)
            fewest = FEWEST_STEPS * 2.0 ** (grid_exponent(largest, self.eps) - DIGITS[array.dtype])
            if self.eps < fewest:
                raise UserError(
                    f"eps={self.eps} drowns in the rounding of {name}, whose largest number is "
                    f"{largest:.3g}; use eps={fewest:.1g} or more.",
                    field="eps",
                    given=self.eps,
                    nearest=fewest,
                )

    @property
    def numbers(self) -> int:
        """How many are perturbed."""
        return sum(part.size for name in self.tensors for _, part in self._pieces(name))

    @property
    def nbytes(self) -> int:
        """Bytes kept beside the tensors."""
        return sum(array.nbytes for array in self._copies.values())

    @property
    def scratch_nbytes(self) -> int:
        """Bytes in use at most while numbers are made: words, their shifted copy, numbers, a product."""
        most = max((part.size for name in self.tensors for _, part in self._pieces(name)), default=0)
        return most * (8 + 8 + 8 + 4 + 4)

    # ------------------------------------------------------------------------------------------ one step

    def move(self, side: int) -> None:
        """Bring the tensors to w + side eps u of this step, side -1, 0 or +1; 0 restores every bit."""
        if side == self.at:
            return
        for number, name in enumerate(self.tensors):
            if self.restore == "copy":
                self._move_from_copy(number, name, side)
            else:
                self._move_on_grid(number, name, side)
        self.at = side

    def _move_on_grid(self, number: int, name: str, side: int) -> None:
        grid = self._grid(name)
        for start, part in self._pieces(name):
            whole = self._numbers(number, start, part)
            whole *= part.dtype.type(self.eps / grid)
            np.rint(whole, out=whole)
            whole *= part.dtype.type((side - self.at) * grid)
            part += whole

    def _move_from_copy(self, number: int, name: str, side: int) -> None:
        copy, first = self._copies[name], self.at == 0
        for start, part in self._pieces(name):
            old = copy[start : start + part.size].reshape(part.shape)
            if first:
                old[...] = part
            else:
                part[...] = old
            if side:
                part += self._numbers(number, start, part) * part.dtype.type(side * self.eps)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Restores the tensors at the end, whatever happens inside."""
        try:
            yield
        finally:
            self.move(0)

    def update(self, g: float, rate: float) -> None:
        """Change the tensors by -rate g u of this step, note it in the log, and go to the next step."""
        if self.at:
            raise RuntimeError("the tensors are not restored")
        self._log.append((self.step, g, rate))
        self._apply(g, rate)
        self.step += 1

    def skip(self) -> None:
        """Go to the next step without a change."""
        self.skipped += 1
        self.step += 1

    def estimate_and_update(self, loss: Callable[[], float], rate: float) -> Estimate:
        """A whole step with the loss of the network as it stands; two calls of `loss`."""
        with self.moving():
            self.move(1)
            plus = float(loss())
            self.move(-1)
            minus = float(loss())
        return self.settle(plus, minus, rate)

    def settle(self, plus: float, minus: float, rate: float) -> Estimate:
        """What follows both passes: the slope and the update, or a skipped step when a loss is not finite."""
        if not math.isfinite(plus) or not math.isfinite(minus):
            self.skip()
            return Estimate(plus, minus, None)
        g = slope(plus, minus, self.eps, self.clip)
        self.update(g, rate)
        return Estimate(plus, minus, g)

    def direction(self, name: str, step: int | None = None) -> Floats:
        """u of one tensor at a step (none: the next one), whole; for looking at, not for training."""
        number, array, part = list(self.tensors).index(name), self.tensors[name], self.parts[name]
        values = array if part is None else part.of(array)
        at = self.step if step is None else step
        return normals(self.seed, at, number, 0, values.size).reshape(values.shape).astype(array.dtype)

    def _pieces(self, name: str) -> Iterator[tuple[int, Floats]]:
        return pieces(self.tensors[name], self.parts[name])

    def _largest(self, name: str) -> float:
        """The largest magnitude; infinite where one is NaN."""
        found = 0.0
        for _, part in self._pieces(name):
            if part.size:
                most, least = float(part.max()), float(part.min())
                found = max(found, abs(most), abs(least)) if not math.isnan(most) else math.inf
        return found

    def _numbers(self, number: int, start: int, part: Floats) -> Floats:
        found = normals(self.seed, self.step, number, start, part.size).reshape(part.shape)
        return found.astype(part.dtype, copy=False)

    def _apply(self, g: float, rate: float) -> None:
        if g == 0 or rate == 0:
            return
        for number, (name, array) in enumerate(self.tensors.items()):
            grid = self._grid(name) if self.restore == "grid" else 1.0
            factor = array.dtype.type(-rate * g / grid)
            for start, part in self._pieces(name):
                change = self._numbers(number, start, part)
                change *= factor
                if self.restore == "grid":
                    change += thresholds(self.seed, self.step, number, start, part.size).reshape(part.shape)
                    np.floor(change, out=change)
                    change *= array.dtype.type(grid)
                part += change
            if self.restore == "grid":
                needed = grid_exponent(self._largest(name), self.eps)
                if needed > self._exponents[name]:
                    self._put_on_grid(name, needed)

    # ------------------------------------------------------------------------------------------ the grid

    def _grid(self, name: str) -> float:
        """The step that all numbers of a tensor are multiples of."""
        return 2.0 ** (self._exponents[name] - DIGITS[self.tensors[name].dtype])

    def _put_on_grid(self, name: str, exponent: int) -> None:
        self._exponents[name] = exponent
        grid = self._grid(name)
        for _, part in self._pieces(name):
            whole = part / part.dtype.type(grid)
            np.rint(whole, out=whole)
            np.multiply(whole, part.dtype.type(grid), out=part)

    # ------------------------------------------------------------------------------------------ the log

    @property
    def log(self) -> NDArray[Any]:
        """One record a step that changed something: LOG."""
        return np.array(self._log, LOG)

    def replay(self, log: NDArray[Any]) -> None:
        """Make the changes of `log` on the tensors as they were when its training began: the same bits as
        that training had, without a forward pass. Raises UserError for another kind of array or a log that
        does not go on from here."""
        if log.dtype != LOG or log.ndim != 1:
            raise UserError(f"a log is a list of {LOG}, not {log.dtype}.", field="log", given=str(log.dtype))
        steps = log["step"].astype(np.int64)
        if len(steps) and (steps[0] < self.step or np.any(np.diff(steps) < 1)):
            raise UserError(
                f"the log's steps are not rising from {self.step}; give the log of a whole training.",
                field="log",
                given=int(steps[0]),
                nearest=self.step,
            )
        for step, g, rate in log.tolist():
            if not math.isfinite(g) or not math.isfinite(rate):
                raise UserError(f"the log's step {step} is not finite.", field="log", given=g)
            self.skipped += step - self.step
            self.step = step
            self.update(g, rate)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything but the tensors, small: for going on after a kill."""
        log = self.log
        return {
            "counters": np.array([self.step, self.skipped], np.int64),
            "exponents": np.array([self._exponents.get(name, 0) for name in self.tensors], np.int64),
            **{f"log_{field}": np.ascontiguousarray(log[field]) for field in ("step", "g", "rate")},
        }

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from `state`; the tensors hold what they held then."""
        self.step, self.skipped = (int(value) for value in state["counters"])
        if self.restore == "grid":
            self._exponents = dict(zip(self.tensors, state["exponents"].tolist(), strict=True))
        self._log = list(zip(*(state[f"log_{field}"].tolist() for field in LOG.names or ()), strict=True))
