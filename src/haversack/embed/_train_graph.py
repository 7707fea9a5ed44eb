"""From a network and a scheme to the compiled step: what may learn, where bounds are, what leads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from haversack.core import index
from haversack.core.errors import UserError, nearest_name
from haversack.embed._train_ops import with_square
from haversack.models.graph import plan
from haversack.models.graph._bounds import bounds_apart
from haversack.models.graph._ir import (
    Conv2d,
    Graph,
    Linear,
    Op,
    Softmax,
    Tensor,
)
from haversack.models.graph.autodiff import RULES as WAYS_BACK
from haversack.models.graph.autodiff import Channels, backward, pruned, with_loss
from haversack.models.graph.series import Activation
from haversack.models.graph.training import HEAD, with_head

Array = npt.NDArray[Any]
Wanted = dict[str, Channels | None]


def prepared(graph: Graph, loss: str, classes: int | None, seed: int) -> Graph:
    """`graph` as training takes it: bounds of sums and means apart (they have a way back of their own),
    ReLUs as bounds; for cross-entropy it ends in f32 logits of a fresh head with `classes` outputs, or of the
    old one (None)."""
    graph = bounds_apart(graph)
    if loss == "cross-entropy":
        if not graph.linears():
            raise UserError(f"{graph.name} has no layer whose outputs could be classes.", field="model")
        return with_head(_ending(graph), classes, seed)
    if classes is not None:
        raise UserError(
            "classes are for cross-entropy; leave them out, or use --loss cross-entropy.", field="classes"
        )
    if graph.tensors[graph.outputs[0]].dtype != "f32":
        raise UserError(
            f"mean-square needs a network that ends in floats, and {graph.name} ends in "
            f"{graph.tensors[graph.outputs[0]].dtype}; use --loss cross-entropy.",
            field="loss",
            given="mean-square",
            nearest="cross-entropy",
        )
    return graph


def _ending(graph: Graph) -> Graph:
    """`graph` up to its last layer that multiplies; raises UserError where more than a softmax follows."""
    after = graph.ops[graph.ops.index(graph.linears()[-1]) + 1 :]
    for op in after:
        soft = isinstance(op, Softmax) or (isinstance(op, Activation) and op.name in ("softmax", "linear"))
        if not soft and type(op).__name__ not in ("Reshape", "Dequantize"):
            raise UserError(
                f"{type(op).__name__} (it writes {op.writes[0]}) follows the last layer of {graph.name}, so "
                "its outputs are no classes; use --loss mean-square.",
                field="loss",
                given="cross-entropy",
                nearest="mean-square",
            )
    return graph


@dataclass
class Seen:
    """A graph as methods of the slots of stage train see a network (their protocol says more)."""

    graph: Graph

    @property
    def name(self) -> str:
        """What people call it."""
        return self.graph.name

    def tensors(self) -> Mapping[str, Array]:
        """What may learn, in the order of the pass."""
        names = [name for op in self.graph.linears() for name in op.reads[1:]]
        return {name: self.graph.constants[name] for name in names if name in self.graph.parameters}

    def roles(self) -> Mapping[str, str]:
        """Weight or bias."""
        biases = {op.bias for op in self.graph.linears()}
        return {name: "bias" if name in biases else "weight" for name in self.tensors()}

    @property
    def blocks(self) -> Mapping[str, tuple[str, ...]]:
        """A block a layer, the last one is the classifier."""
        names = self.tensors()
        return {
            op.weight: tuple(name for name in op.reads[1:] if name in names) for op in self.graph.linears()
        }

    def learn_in(self, latent: str, gradients: str) -> None:
        """Integers learn as they are."""

    def settle(self) -> None:
        """They need nothing."""


def wanted_by(graph: Graph, scheme: str, seed: int) -> Wanted:
    """What learns: by a method of `train fit --parameters` (all, bias, head, sparse:kib=100), by the names of
    tensors (only:NAME+NAME), or by a JSON file {"NAME": null | [channels]}.

    Raises UserError for a method that does not fit, a tensor that does not exist, one that cannot learn, and
    channels that it does not have.
    """
    seen = Seen(graph)
    if scheme.endswith(".json"):
        return _checked(seen, _read(Path(scheme)))
    if scheme.startswith("only:"):
        names = [name for name in scheme[len("only:") :].split("+") if name]
        return _checked(seen, dict.fromkeys(names))
    method = cast(Any, index.create("train", "parameters", scheme))
    if not hasattr(method, "prepare"):
        raise UserError(
            f"{scheme} does not say what learns here; use all, bias, head or sparse.", field="train"
        )
    if type(method).__name__ not in ("All", "Bias", "Head", "Sparse"):
        raise UserError(
            f"--train {scheme} changes the network itself, which has no C kernels; use all, bias, head or "
            "sparse.",
            field="train",
            given=scheme,
            nearest="bias",
        )
    learned = method.prepare(seen, seed).wanted
    return {name: None if part is None else tuple(part.indices) for name, part in learned.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no scheme: {error}.", field="train", given=str(path)) from error
    if not isinstance(found, dict) or not all(
        value is None or (isinstance(value, list) and all(type(each) is int for each in value))
        for value in found.values()
    ):
        raise UserError(
            f'{path} holds no scheme (allowed is {{"TENSOR": null}} or {{"TENSOR": [channels]}}).',
            field="train",
            given=str(path),
        )
    return found


def _checked(seen: Seen, asked: Mapping[str, Any]) -> Wanted:
    graph, may = seen.graph, seen.tensors()
    if not asked:
        raise UserError("the scheme names no tensor.", field="train", nearest=list(may)[:1])
    convolutions = {op.weight for op in graph.convolutions()}
    found: Wanted = {}
    for name in (*may, *(name for name in asked if name not in may)):
        if name not in asked:
            continue
        if name not in graph.tensors:
            near = nearest_name(name, may)
            raise UserError(
                f"{name} is no tensor of {graph.name}{f'; did you mean {near}?' if near else ''} What may "
                f"learn: {', '.join(may)}.",
                field="train",
                given=name,
                nearest=near,
            )
        if name not in may:
            raise UserError(
                f"{name} of {graph.name} cannot learn (it is no weight and no bias of a layer); what may: "
                f"{', '.join(may)}.",
                field="train",
                given=name,
                nearest=nearest_name(name, may),
            )
        channels = asked[name]
        if channels is None:
            found[name] = None
            continue
        count = graph.tensors[name].shape[-1]
        if name not in convolutions:
            raise UserError(
                f"{name} is no kernel of a convolution, so it learns as a whole or not; give null.",
                field="train",
                given=name,
            )
        if sorted(set(channels)) != channels or not channels or not 0 <= channels[0] <= channels[-1] < count:
            raise UserError(
                f"channels of {name} are to rise, once each, from 0 to {count - 1}, and are {channels[:8]}.",
                field="train",
                given=channels[:8],
                nearest=count - 1,
            )
        found[name] = tuple(channels)
    return found


def factors_by(graph: Graph, precision: str, wanted: Wanted) -> dict[str, Array]:
    """What gradients of integers are multiplied by, f32 [outputs] a parameter: quantization-aware scaling."""
    if precision != "int8-qas":
        return {}
    seen = Seen(graph)
    method = cast(Any, index.create("train", "precision", "int8-qas"))
    learned = type("Learned", (), {"wanted": wanted})
    found = method.begin(seen, learned).factors
    return {name: values.astype(np.float32) for name, (values, _) in found.items() if name in wanted}


def step_graph(graph: Graph, wanted: Wanted, factors: Mapping[str, Array], loss: str) -> Graph:
    """The schedule of one step. What lies below the lowest layer that learns has no way back, so it may be
    of any kind; raises UserError for what has none above."""
    first = next(number for number, op in enumerate(graph.ops) if set(op.reads) & set(wanted))
    frozen, rest = graph.ops[:first], graph.ops[first:]
    crossing = [
        name
        for name in (*graph.inputs, *(name for op in frozen for name in op.writes))
        if any(name in op.reads for op in rest)
    ]
    upper = replace(graph, ops=rest, inputs=tuple(crossing))
    ended = with_loss(upper) if loss == "cross-entropy" else with_square(upper)
    try:
        whole = backward(ended)
    except ValueError as error:
        refuse_without_way_back(graph, rest, str(error))
        raise
    whole = replace(
        whole,
        ops=(*frozen, *whole.ops),
        inputs=(*graph.inputs, *(name for name in whole.inputs if name not in crossing)),
    )
    steps = plan.reordered(plan.fused(pruned(whole, wanted, factors=factors)))
    reached = {getattr(op, "parameter", None) for op in steps.ops}
    for name in wanted:
        if name not in reached:
            raise UserError(f"{name} cannot learn: no gradient reaches it.", field="train", given=name)
    return steps


def refuse_without_way_back(graph: Graph, rest: tuple[Op, ...], said: str) -> None:
    """Raises UserError that names the operation and the layers above it."""
    at = max(number for number, op in enumerate(rest) if type(op) not in WAYS_BACK)
    op = rest[at]
    above = [each.weight for each in rest[at:] if isinstance(each, Linear)]
    advice = f"let only layers above it learn ({', '.join(above)})" if above else "no layer is above it"
    raise UserError(
        f"{type(op).__name__} (it writes {op.writes[0]}) of {graph.name} has no way back: {advice}.",
        field="train",
        given=said.split()[0],
        nearest=above[:1],
    )


__all__ = ["HEAD", "Conv2d", "Tensor", "factors_by", "prepared", "step_graph", "wanted_by"]
