"""Low rank for any PyTorch module: layers replaced in place or in a copy, with a report; and back to dense.

Paper: Cahyawijaya, "Greenformers" (2021); the solvers and the rule of ranks are in low_rank.py.
What is here: `factorize` walks a module. Without `only`, layers that are direct children of the root stay (a
tied output head), all deeper ones are taken; a bare layer given as root is taken. Linear, Conv1d, Conv2d,
Conv3d and the transposed linear of GPT-2 are layers; what is factored already stays unless `again`. Type,
device, `requires_grad`, mode and sharing are kept: a layer in two places is factored once, a weight that two
layers share has one pair of factors, and one that an embedding shares stays.
Names: `X.weight` becomes `X.led.0.weight` and `X.led.1.weight` (`X.ced.0` and `X.ced.1` for convolutions),
the bias moves to the second.
Cost: that of the solver for each layer, on the processor; 74 layers of BERT-base take about a minute.
Limits: subclasses of these layers, layers with hooks or parametrizations and the joint matrix of
nn.MultiheadAttention stay as they are; the report says so.
"""

from __future__ import annotations

import copy as copying
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from haversack.core.errors import UserError, not_allowed
from haversack.shrink.structure._energy import energies, energy_ranks
from haversack.shrink.structure._factored_torch import (
    CED,
    CONVOLUTIONS,
    LED,
    dense_of,
    is_transposed,
    matrices,
    thin,
)
from haversack.shrink.structure._walk_torch import Place, deep_copy, places_of
from haversack.shrink.structure.low_rank import (
    SOLVERS,
    Array,
    check_rank,
    factor,
    relative_error,
)

SYSTEM = 38


@dataclass(frozen=True)
class LayerReport:
    """One layer: weights before and after, the relative error of its product, or why it stays."""

    name: str
    kind: str
    inputs: int
    outputs: int
    rank: int | None
    before: int
    after: int
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `factorize` did: every layer, and the model's parameters, each shared one counted once."""

    layers: tuple[LayerReport, ...] = field(default_factory=tuple)
    parameters_before: int = 0
    parameters_after: int = 0

    @property
    def factored(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.layers if layer.rank is not None)

    @property
    def worst_error(self) -> float:
        """The largest relative error of a factored layer, 0 without any."""
        return max((layer.error or 0.0 for layer in self.factored), default=0.0)

    def __str__(self) -> str:
        lines = [
            f"{layer.name or '(root)'}: {layer.inputs} -> {layer.outputs}, "
            + (
                f"rank {layer.rank}, {layer.before} -> {layer.after} weights"
                + (f", relative error {layer.error:.3f}" if layer.error is not None else "")
                if layer.rank is not None
                else f"stays: {layer.reason}"
            )
            for layer in self.layers
        ]
        lines.append(f"parameters: {self.parameters_before} -> {self.parameters_after}")
        if self.worst_error > 0.1:
            lines.append("errors above 0.1 usually cost accuracy; fine-tune the model before you use it")
        return "\n".join(lines)


def factorize(
    model: nn.Module,
    rank: float | None = None,
    solver: str = "svd",
    n_iter: int = 10,
    only: Sequence[str | nn.Module] | None = None,
    skip: Sequence[str | nn.Module] | None = None,
    copy: bool = True,
    *,
    energy: float | None = None,
    max_error: float | None = None,
    parameters: int | None = None,
    limit: str = "published",
    again: bool = False,
    seed: int = 0,
) -> tuple[nn.Module, Report]:
    """The model with two thin layers in place of each that was chosen, and the report.

    `rank`: a number from 1, or a share of the limit. Instead of it `energy` (share of squared singular
    values that each layer keeps) or `max_error` (relative error of each layer), either with `parameters`,
    the most weights that all chosen layers together may have. `only`, `skip`: names, patterns or modules,
    with all below. `limit="kernel"` counts a convolution's kernel. `copy=False` changes `model` itself, all
    or nothing.

    Raises UserError for a bad rank, solver, name or budget, and for weights that are not finite; warns for
    each layer that cannot get smaller.
    """
    _check(rank, solver, energy, max_error, parameters, limit)
    if copy:
        model, only, skip = deep_copy(model, only, skip)
    before = count(model)
    places = places_of(model, only, skip, again)
    chosen = [place for place in places if not place.reason]
    if rank is not None:
        ranks = {place.name: place.shape.rank(rank, limit) for place in chosen}
    else:
        share = energy if energy is not None else 1 - (max_error or 0.0) ** 2
        spectra = {place.name: _spectrum(place) for place in chosen}
        ranks = energy_ranks(
            spectra, {place.name: place.shape for place in chosen}, energy=share, parameters=parameters
        )
    made: dict[int, nn.Module] = {}
    factors: dict[tuple[int, bool], list[nn.Parameter]] = {}
    layers = []
    for number, place in enumerate(places):
        shape = place.shape
        found = ranks.get(place.name) if not place.reason else None
        reason, error = place.reason, None
        if found is not None:
            made[id(place.module)], error = _replaced(place, found, solver, n_iter, seed + number, factors)
        elif not reason:
            reason = "two layers of this rank are no smaller"
            warnings.warn(f"{place.name or 'the root'} stays: {reason}", stacklevel=2)
        after = shape.factored(found) if found is not None else shape.dense
        layers.append(
            LayerReport(
                place.name, place.kind, shape.inputs, shape.outputs, found, shape.dense, after, error, reason
            )
        )
    model = _put(model, made)
    return model, Report(tuple(layers), before, count(model))


def merge(model: nn.Module, copy: bool = True) -> nn.Module:
    """The model with every factored layer dense again."""
    if copy:
        model = copying.deepcopy(model)
    made = {id(each): dense_of(each) for each in model.modules() if isinstance(each, LED | CED)}
    return _put(model, made)


def count(model: nn.Module) -> int:
    """Parameters of the model, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check(
    rank: float | None,
    solver: str,
    energy: float | None,
    max_error: float | None,
    parameters: int | None,
    limit: str,
) -> None:
    if sum(value is not None for value in (rank, energy, max_error)) != 1:
        raise UserError(
            "give exactly one of rank, energy and max_error.", field="rank", given=str(rank), nearest=0.4
        )
    if rank is not None:
        check_rank(rank)
        if parameters is not None:
            raise UserError(
                "parameters goes with energy or max_error, not with a rank.",
                field="parameters",
                given=parameters,
            )
    if max_error is not None and not 0 <= max_error < 1:
        raise UserError(
            f"max_error={max_error} is no relative error; give a number from 0 to below 1.",
            field="max_error",
            given=str(max_error),
        )
    if solver not in SOLVERS:
        raise not_allowed("solver", solver, SOLVERS)
    if limit not in ("published", "kernel"):
        raise not_allowed("limit", limit, ("published", "kernel"))


def _put(model: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """Replace modules by identity wherever they stand; the root too."""
    if id(model) in made:
        return made[id(model)]
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and id(child) in made:
                parent._modules[key] = made[id(child)]
    for each in model.modules():
        # PyTorch's fused encoder layer reads the dense weights itself.
        if isinstance(each, nn.TransformerEncoder) and _has_factors(each):
            each.use_nested_tensor = False
        if isinstance(each, nn.TransformerEncoderLayer) and _has_factors(each):
            each.activation_relu_or_gelu = 0
    return model


def _has_factors(module: nn.Module) -> bool:
    return any(isinstance(each, LED | CED) for each in module.modules())


# Factors


def _spectrum(place: Place) -> Array:
    """Squared singular values; those of a convolution's groups side by side, as its rank is counted."""
    return np.stack([energies(matrix) for matrix in matrices(place.dense)], axis=1).reshape(-1)


def _replaced(
    place: Place,
    rank: int,
    solver: str,
    n_iter: int,
    seed: int,
    known: dict[tuple[int, bool], list[nn.Parameter]],
) -> tuple[nn.Module, float | None]:
    """The factored layer, and the relative error of its product (None on the meta device)."""
    layer: Any = place.dense
    key = (id(layer.weight), is_transposed(layer))
    error = None
    first, second = thin(layer, rank)
    if key not in known:
        known[key] = [_like(part, layer.weight) for part in (first.weight, second.weight)]
        if not layer.weight.is_meta:
            error = _fill(known[key], place, rank, solver, n_iter, seed)
    first.weight, second.weight = known[key]
    if layer.bias is not None:
        second.bias = layer.bias
    unit = CED(first, second) if isinstance(layer, CONVOLUTIONS) else LED(first, second, key[1])
    return unit.train(layer.training), error


def _like(part: Tensor, weight: Tensor) -> nn.Parameter:
    """An empty parameter of the part's shape, of the weight's type, place and `requires_grad`."""
    empty = torch.empty(part.shape, dtype=weight.dtype, device=weight.device)
    return nn.Parameter(empty, requires_grad=weight.requires_grad)


def _fill(parts: list[nn.Parameter], place: Place, rank: int, solver: str, n_iter: int, seed: int) -> float:
    groups = place.shape.groups
    missed = whole = 0.0
    firsts, seconds = [], []
    for number, matrix in enumerate(matrices(place.dense)):
        try:
            u, v = factor(matrix, rank // groups, solver, n_iter, seed + number)
        except UserError as error:
            sentence = f"{place.name or 'the root'}: {error}"
            raise UserError(sentence, field=error.field, given=error.given, nearest=error.nearest) from None
        firsts.append(u.T)
        seconds.append(v.T)
        size = float(np.linalg.norm(matrix)) ** 2
        whole += size
        missed += relative_error(matrix, u, v) ** 2 * (size or 1.0)
    with torch.no_grad():
        for part, values in zip(parts, (firsts, seconds), strict=True):
            part.copy_(torch.from_numpy(np.ascontiguousarray(np.concatenate(values))).reshape(part.shape))
    return float(np.sqrt(missed / (whole or 1.0)))
