"""Learned forward kinematics: a small recurrent network that says where a soft body will be one tick later.

Paper: Toward smart composites: small-scale, untethered prediction and control for soft sensor/actuator
systems (arXiv 2205.10940); public code: correlllab/nn4mc_py, sarahaguasvivas/nlsoft (MIT), of which only
facts are used.

The input of tick n is x = [u(n) .. u(n-nd+1), y(n) .. y(n-dd+1), s(n)]: inputs, positions fed back from the
model's own predictions (measured ones where the position is known in use), sensors. The output is y(n+1), in
metres from the neutral point. A GRU(5) or GRU(10) with dense layers behind it, or dense layers of 10 and 5;
Huber loss, Adam, batches of 50, 30 epochs; inputs normalised to [-0.5, 0.5] by ranges of the training log,
which are folded into the first layer afterwards, so that the network takes physical units.

Changed: the released script's input block holds the label columns; here a row holds only samples from before
its label (a test moves labels and finds no input changed). Networks are trained on pieces of `STEPS` ticks
with the hidden state carried through (backpropagation through time), since that is how they run. Positions
that are fed back are replaced, after the first third of the epochs, by what the model itself predicts, so
that it learns to lean on its sensors [inferred]. The held-out part is the end of the log; `folds` gives the
paper's time-ordered split.

Cost: 30 epochs over a minute at 125 Hz are a few seconds of numpy. Limits: one body, one rate; nothing adapts
in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError, unknown_name
from haversack.embed.plants import Log
from haversack.models.series.activations import SLOPES
from haversack.models.series.recurrent import (
    Dense,
    Gru,
    Layer,
    State,
    arrays,
    dense,
    gru_gates,
    scaled_inputs,
    start,
    step,
)

Array = npt.NDArray[Any]
SYSTEM = 18

KINDS = ("gru5", "gru10", "gru5-dense5", "gru10-dense5", "dense")
STEPS = 20
BATCH, EPOCHS, RATE = 50, 30, 1e-2
REFRESH = 5
"""Epochs for which the model's own positions are fed back before they are predicted again."""
HUBER = 0.05
"""Where the loss turns from square to straight, in ranges of the output."""


@dataclass(frozen=True)
class ForwardModel:
    """Layers that take x in physical units and give y(n+1), and the window they look at."""

    layers: tuple[Layer, ...]
    inputs: int
    outputs: int
    sensors: int
    input_delays: int = 2
    output_delays: int = 2
    low: Array | None = None
    high: Array | None = None
    """The box that training saw of the outputs."""

    def __post_init__(self) -> None:
        if (width := int(self.layers[0].kernel.shape[0])) != self.width:
            raise UserError(
                f"the network takes {width} inputs and the window has {self.width} ({self.input_delays} x "
                f"{self.inputs} inputs, {self.output_delays} x {self.outputs} positions, {self.sensors} "
                f"sensors).",
                field="width",
                given=width,
                nearest=self.width,
            )
        for layer in self.layers:
            for name, values in arrays(layer).items():
                if not np.isfinite(values).all():
                    raise UserError(
                        f"the {name} of {type(layer).__name__} holds numbers that are not finite; train "
                        f"it again.",
                        field="weights",
                        given=name,
                    )

    @property
    def width(self) -> int:
        return self.input_delays * self.inputs + self.output_delays * self.outputs + self.sensors

    def start(self, batch: int = 1) -> State:
        """Zero hidden states."""
        return start(self.layers, batch)

    def predict(self, x: Array, state: State) -> tuple[Array, State]:
        """(batch, width) to (batch, outputs), and the next hidden state."""
        return step(self.layers, x, state)


def rows(log: Log, nd: int, dd: int) -> tuple[Array, Array]:
    """The inputs (ticks, width) and labels (ticks, n) of a log; nothing of a row's label is in its inputs.

    Row k is of tick n = k + max(nd, dd) - 1 and its label is the position of tick n + 1.
    """
    first, last = max(nd, dd) - 1, len(log.inputs) - 1
    delayed_u = [log.inputs[first - back : last - back] for back in range(nd)]
    delayed_y = [log.positions[first - back : last - back] for back in range(dd)]
    return np.hstack([*delayed_u, *delayed_y, log.sensors[first:last]]), log.positions[first + 1 : last + 1]


def folds(count: int, parts: int = 10) -> Iterator[tuple[slice, slice]]:
    """Time-ordered splits: each trains on all before a part and is tested on that part."""
    size = count // (parts + 1)
    for part in range(1, parts + 1):
        yield slice(0, part * size), slice(part * size, (part + 1) * size)


def draw(kind: str, width: int, outputs: int, rng: np.random.Generator) -> tuple[Layer, ...]:
    """First weights: even in +-sqrt(6 / (inputs + outputs)), recurrent ones orthogonal, biases zero."""

    def even(inputs: int, units: int) -> Array:
        bound = np.sqrt(6 / (inputs + units))
        return rng.uniform(-bound, bound, (inputs, units))

    def connected(sizes: Sequence[int], functions: Sequence[str]) -> tuple[Layer, ...]:
        pairs = zip(sizes[:-1], sizes[1:], functions, strict=True)
        return tuple(Dense(even(a, b), np.zeros(b), function) for a, b, function in pairs)

    if kind not in KINDS:
        raise unknown_name("network", kind, KINDS)
    if kind == "dense":
        return connected((width, 10, 5, outputs), ("tanh", "tanh", "linear"))
    units = int(kind.removeprefix("gru").partition("-")[0])
    whole = np.hstack([np.linalg.qr(rng.standard_normal((units, units)))[0] for _ in range(3)])
    first = Gru(even(width, 3 * units), whole, np.zeros((2, 3 * units)))
    if kind.endswith("dense5"):
        return (first, *connected((units, 5, outputs), ("tanh", "linear")))
    return (first, *connected((units, outputs), ("linear",)))


def huber(error: Array, knee: float) -> tuple[float, Array]:
    """The mean Huber loss and its gradient."""
    far = np.abs(error) > knee
    loss = np.where(far, knee * (np.abs(error) - knee / 2), error**2 / 2)
    return float(loss.mean()), np.where(far, knee * np.sign(error), error) / error.size


def through_time(
    layers: Sequence[Layer], x: Array, label: Array, loss: Callable[[Array, float], tuple[float, Array]]
) -> tuple[float, list[dict[str, Array]]]:
    """The loss over pieces (batch, steps, width) from zero states, and its gradients by layer and array.

    The GRUs stand first; dense layers see all steps at once.
    """
    batch, steps, _ = x.shape
    recurrent = [layer for layer in layers if isinstance(layer, Gru)]
    seen: list[tuple[Array, list[tuple[Array, ...]]]] = []
    signal = x
    for layer in recurrent:
        h = np.zeros((batch, layer.units))
        kept: list[tuple[Array, ...]] = []
        outs: list[Array] = []
        for at in range(steps):
            gates = gru_gates(layer, signal[:, at], h)
            kept.append((h, *gates))
            h = gates[0] * h + (1 - gates[0]) * gates[4]
            outs.append(h)
        seen.append((signal, kept))
        signal = np.stack(outs, axis=1)
    values = [signal]
    connected = [layer for layer in layers[len(recurrent) :] if isinstance(layer, Dense)]
    for each in connected:
        values.append(dense(each, values[-1]))
    found, slope = loss(values[-1] - label, HUBER)
    gradients: list[dict[str, Array]] = []
    for each, before, after in reversed(list(zip(connected, values, values[1:], strict=False))):
        slope = slope * SLOPES[each.activation](after)
        flat = slope.reshape(-1, slope.shape[-1])
        gradients.append({"kernel": before.reshape(len(flat), -1).T @ flat, "bias": flat.sum(axis=0)})
        slope = slope @ each.kernel.T
    for layer, (inputs, kept) in reversed(list(zip(recurrent, seen, strict=True))):
        one, slope = _gru_back(layer, inputs, kept, slope)
        gradients.append(one)
    return found, gradients[::-1]


def _gru_back(
    layer: Gru, x: Array, kept: list[tuple[Array, ...]], slope: Array
) -> tuple[dict[str, Array], Array]:
    """Gradients of a GRU that is reset after the product, and what goes on to its inputs."""
    units = layer.units
    gradients = {name: np.zeros_like(values) for name, values in arrays(layer).items()}
    back = np.zeros_like(x)
    carried = np.zeros((len(x), units))
    last = layer.recurrent[:, 2 * units :]
    for at in reversed(range(x.shape[1])):
        h, z, r, product, _, c = kept[at]
        dh = slope[:, at] + carried
        dc = dh * (1 - z) * SLOPES[layer.activation](c)
        dz = dh * (h - c) * SLOPES[layer.gate](z)
        dr = dc * product * SLOPES[layer.gate](r)
        outer = np.hstack([dz, dr, dc])
        inner = np.hstack([dz, dr, dc * r])
        gradients["kernel"] += x[:, at].T @ outer
        gradients["recurrent"] += h.T @ inner
        gradients["bias"] += np.stack([outer.sum(axis=0), inner.sum(axis=0)])
        back[:, at] = outer @ layer.kernel.T
        carried = dh * z + np.hstack([dz, dr]) @ layer.recurrent[:, : 2 * units].T + (dc * r) @ last.T
    return gradients, back


class Adam:
    """Adam on the arrays of a list of layers, which it replaces."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = list(layers)
        self.steps = 0
        self._mean = [{name: np.zeros_like(each) for name, each in arrays(layer).items()} for layer in layers]
        self._square = [{name: np.zeros_like(each) for name, each in part.items()} for part in self._mean]

    def update(self, gradients: Sequence[dict[str, Array]], rate: float) -> None:
        """One step at `rate`."""
        self.steps += 1
        for at, (layer, given) in enumerate(zip(self.layers, gradients, strict=True)):
            changed = {}
            for name, gradient in given.items():
                mean, square = self._mean[at][name], self._square[at][name]
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                size = rate / (1 - 0.9**self.steps)
                changed[name] = getattr(layer, name) - size * mean / (
                    np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8
                )
            self.layers[at] = replace(layer, **changed)


def ranges(values: Array) -> tuple[Array, Array]:
    """Middle and width of each column; the width of a column that stands still is 1."""
    low, high = values.min(axis=0), values.max(axis=0)
    return (low + high) / 2, np.where(high > low, high - low, 1.0)


@dataclass(frozen=True)
class Fit:
    """A trained model and the mean absolute error in metres on the end of its log, one step ahead and running
    free (the same where positions are measured)."""

    model: ForwardModel
    error: float
    free_error: float


def fit_forward_model(
    log: Log,
    nd: int = 2,
    dd: int = 2,
    kind: str = "gru5",
    *,
    measured: bool = False,
    epochs: int = EPOCHS,
    seed: int = 0,
    held_out: float = 0.1,
    say: Callable[[float], None] = lambda share: None,
) -> Fit:
    """Train a model of `kind` on a log; the last `held_out` of it is only measured on.

    `measured`: positions are known in use, so that none of the model's own are fed back. Raises UserError for
    a network that is not known and for logs that are too short.
    """
    x, label = rows(log, nd, dd)
    count = round(len(x) * (1 - held_out)) // STEPS * STEPS
    if count < BATCH * STEPS // 5 or len(x) - count < STEPS:
        raise UserError(
            f"the log has {len(log.inputs)} ticks; training needs at least {BATCH * STEPS}.",
            field="log",
            given=len(log.inputs),
            nearest=BATCH * STEPS,
        )
    (middle, width), (goal, span) = ranges(x[:count]), ranges(label[:count])
    scaled, wanted = (x - middle) / width, (label - goal) / span
    rng = np.random.default_rng(seed)
    m, n = log.inputs.shape[1], log.positions.shape[1]
    learner = Adam(draw(kind, x.shape[1], n, rng))
    fed = slice(nd * m, nd * m + dd * n)

    def free(layers: Sequence[Layer], data: Array) -> tuple[Array, Array]:
        return run_free(
            layers, data, fed, lambda y: (np.tile(y * span + goal, dd) - middle[fed]) / width[fed], n
        )

    steps, batch = (1, BATCH) if kind == "dense" else (STEPS, BATCH // 5)
    source = scaled
    for epoch in range(epochs):
        if not measured and epoch >= epochs // 3 and epoch % REFRESH == 0:
            source = scaled.copy()
            source[:count] = free(learner.layers, scaled[:count])[1]
        offset = int(rng.integers(steps))
        pieces = (count - offset) // steps
        inputs = source[offset : offset + pieces * steps].reshape(pieces, steps, -1)
        labels = wanted[offset : offset + pieces * steps].reshape(pieces, steps, -1)
        rate = RATE * 0.5 * (1 + np.cos(np.pi * epoch / epochs)) + 1e-4
        order = rng.permutation(pieces)
        for at in range(0, pieces, batch):
            part = order[at : at + batch]
            _, gradients = through_time(learner.layers, inputs[part], labels[part], huber)
            learner.update(gradients, rate)
        say((epoch + 1) / epochs)
    layers = tuple(learner.layers)
    one, _ = step_through(layers, scaled[count:])
    alone = one if measured else free(layers, scaled[count:])[0]
    errors = [float(np.abs((y - wanted[count:]) * span).mean()) for y in (one, alone)]
    folded = (scaled_inputs(layers[0], 1 / width, -middle / width), *layers[1:])
    final = folded[-1]
    assert isinstance(final, Dense)
    final = replace(final, kernel=final.kernel * span, bias=final.bias * span + goal)
    model = ForwardModel(
        (*folded[:-1], final), m, n, log.sensors.shape[1], nd, dd, label.min(0), label.max(0)
    )
    return Fit(model, *errors)


def step_through(layers: Sequence[Layer], x: Array) -> tuple[Array, State]:
    """Outputs (ticks, n) of a series, the hidden state carried along."""
    state, outs = start(layers), []
    for row in x:
        y, state = step(layers, row[None], state)
        outs.append(y[0])
    return np.array(outs), state


def run_free(
    layers: Sequence[Layer], x: Array, fed: slice, as_input: Callable[[Array], Array], outputs: int
) -> tuple[Array, Array]:
    """The same with the positions in columns `fed` replaced by the model's own, the newest first: outputs,
    and the inputs as they were. `as_input` scales a position, repeated to the columns' number."""
    state, seen, outs = start(layers), x.copy(), []
    history = x[0, fed].copy()
    for at in range(len(x)):
        seen[at, fed] = history
        y, state = step(layers, seen[at : at + 1], state)
        outs.append(y[0])
        history[outputs:] = history[:-outputs].copy()
        history[:outputs] = as_input(y[0])[:outputs]
    return np.array(outs), seen
