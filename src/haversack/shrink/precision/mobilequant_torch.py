"""MobileQuant's learning: transforms, clipping and ranges of all blocks together, end to end.

The maths of the grids and what is rounded is in mobilequant.py, what gradients pass through in
_mobilequant_learned_torch.py; here is the order of things: the float model's last hidden state is kept, pairs
are smoothed, ranges calibrated, and what is learned is learned against that state (or, for the layer-wise
baseline, one block after the other against the float block), then folded into the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haversack.core.errors import UserError, not_allowed
from haversack.models._architecture import Architecture, Block
from haversack.models._blocks_torch import PLAIN, Hooks, block_forward, embed, logits_of, through_blocks
from haversack.shrink._rounding import F32
from haversack.shrink.precision._mobilequant_learned_torch import (
    Clipping,
    Fixed,
    Ranges,
    Rounding,
    Transformed,
    Transforms,
    Watching,
)
from haversack.shrink.precision._mobilequant_model import OnGrid, QuantizedModel
from haversack.shrink.precision.mobilequant import (
    all_pairs,
    parts_of,
    precision_map,
    rows_apart,
    smooth,
    weight_grid,
)

I32 = NDArray[np.int32]
MODES = ("e2e", "layerwise", "smoothed", "nearest")
PIECE = 8
"""Texts that pass at once where nothing is learned."""


@dataclass(frozen=True)
class Rates:
    """Learning rates at the first step; each falls along a cosine to a tenth."""

    let: float = 1e-3
    lwc: float = 1e-2
    lrl: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    """What is done. `pairs`: kinds of pairs that are smoothed and learned (see shrink/_transforms.py).

    `ranges`: activation ranges are learned (LRL). `per_channel` None: as the precision map says. `symmetric`
    weights, as packs hold them. `batch` texts make one step. `full`: 8 bits everywhere.
    """

    bits: int = 8
    mode: str = "e2e"
    pairs: tuple[str, ...] = ("norm", "linear", "gate")
    queries: bool = True
    ranges: bool = True
    symmetric: bool = True
    per_channel: bool | None = None
    full: bool = False
    epochs: int = 4
    batch: int = 1
    rates: Rates = Rates()
    seed: int = 1337
    checkpointed: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise not_allowed("mode", self.mode, MODES)
        if self.bits not in (4, 8):
            raise not_allowed("bits", self.bits, (4, 8))


class Job:
    """One model on its way to its grids: float tensors, texts, and what is learned."""

    def __init__(
        self,
        architecture: Architecture,
        tensors: Mapping[str, F32],
        texts: I32,
        recipe: Recipe,
        tell: Callable[[str], None],
        copied: bool = True,
    ) -> None:
        self.architecture, self.recipe, self.tell = architecture, recipe, tell
        self.bits = precision_map(architecture, full=recipe.full)
        if texts.ndim != 2 or texts.size == 0:
            raise UserError(
                "mobilequant needs calibration text and got no tokens.", field="calibration", given=0
            )
        if recipe.mode == "nearest":
            recipe_pairs: list[Any] = []
        else:
            recipe_pairs = all_pairs(architecture, recipe.pairs)
        self.pairs = recipe_pairs
        self.numbers = {name: np.array(values) if copied else values for name, values in tensors.items()}
        for name, values in self.numbers.items():
            if not np.isfinite(values).all():
                raise UserError(f"the tensor {name} is not finite.", field="model", given=name)
        self.tensors = {name: torch.from_numpy(values) for name, values in self.numbers.items()}
        self.texts = torch.from_numpy(np.ascontiguousarray(texts, np.int64))
        with torch.no_grad():
            self.entries = embed(architecture, self.texts, self.tensors)
            self.targets, first = self._watch(Watching(self.bits, {p.consumers[0] for p in self.pairs}))
        smooth(self.numbers, self.pairs, first.peaks)  # the tensors share the memory
        self.grids = first.grids(self.bits)
        if self.pairs:
            with torch.no_grad():
                self.grids = self._watch(Watching(self.bits))[1].grids(self.bits)

    def _watch(self, watching: Watching) -> tuple[Tensor, Watching]:
        """The last hidden states of all texts, seen by `watching`."""
        found = [
            through_blocks(self.architecture, part, self.tensors, watching)
            for part in self.entries.split(PIECE)
        ]
        return torch.cat(found), watching

    def rounding(self, blocks: Sequence[Block]) -> Rounding:
        """What is learned for `blocks`, as it begins."""
        recipe = self.recipe
        names = {name for block in blocks for name in block.tensors()}
        pairs = [pair for pair in self.pairs if pair.producer in names]
        transforms = Transforms(pairs, {pair.producer: len(self.numbers[pair.producer]) for pair in pairs})
        each: dict[str, bool] = {}
        norms: dict[str, float] = {}
        for block in blocks:
            parts = parts_of(block)
            each |= rows_apart(block, recipe.bits, recipe.per_channel)
            norms |= {norm.weight: norm.offset for norm in parts.norms}
            if recipe.queries and self.pairs:
                transforms.tie_queries(parts.attention)
        rows = {name: len(self.numbers[name]) for name in each}
        clipping = Clipping(rows, each, recipe.bits, recipe.symmetric)
        ranges = Ranges({where: grid for where, grid in self.grids.items() if where.name in names})
        clipped = recipe.mode in ("e2e", "layerwise")
        return Rounding(transforms, clipping, ranges, norms, self.tensors, clipped)

    def learn(
        self,
        rounding: Rounding,
        forward: Callable[[Tensor, Hooks], Tensor],
        entries: Tensor,
        targets: Tensor,
        what: str,
    ) -> None:
        """Learn what `rounding` holds so that `forward` of `entries` comes near `targets`."""
        recipe, rates = self.recipe, self.recipe.rates
        groups = [
            (list(rounding.transforms.parameters()), rates.let),
            (list(rounding.clipping.parameters()), rates.lwc),
            (list(rounding.ranges.parameters()) if recipe.ranges else [], rates.lrl),
        ]
        optimizer = torch.optim.AdamW(
            [{"params": found, "lr": rate} for found, rate in groups if found], weight_decay=0.0
        )
        steps = recipe.epochs * math.ceil(len(entries) / recipe.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.1 + 0.9 * (1 + math.cos(math.pi * min(step / steps, 1.0))) / 2
        )
        generator = torch.Generator().manual_seed(recipe.seed)
        modules = (rounding.transforms, rounding.clipping, rounding.ranges)
        good, scale = _states(modules), targets.square().mean()
        for epoch in range(recipe.epochs):
            total = 0.0
            for part in torch.randperm(len(entries), generator=generator).split(recipe.batch):
                rounding.transforms.keep_away_from_zero()
                optimizer.zero_grad()
                loss = (forward(entries[part], rounding) - targets[part]).square().mean() / scale
                if not torch.isfinite(loss):
                    _restore(modules, good)
                    self.tell(
                        f"{what}: the loss is not a number in epoch {epoch + 1}; the last good state is kept"
                    )
                    return
                total += float(loss.detach()) * len(part)
                good = _states(modules)
                loss.backward()
                optimizer.step()
                schedule.step()
            self.tell(f"{what}: epoch {epoch + 1} of {recipe.epochs}, loss {total / len(entries):.3e}")

    def loss(self, rounding: Rounding) -> float:
        """The mean square difference of the last hidden state, on every text."""
        with torch.no_grad():
            parts = [
                (through_blocks(self.architecture, entry, self.tensors, rounding) - target).square().sum()
                for entry, target in zip(self.entries.split(PIECE), self.targets.split(PIECE), strict=True)
            ]
        return float(sum(parts)) / self.targets.numel()

    def end_to_end(self) -> Rounding:
        """All blocks learned together."""
        rounding = self.rounding(self.architecture.blocks)

        def forward(entry: Tensor, hooks: Hooks) -> Tensor:
            return through_blocks(
                self.architecture, entry, self.tensors, hooks, checkpointed=self.recipe.checkpointed
            )

        self.learn(rounding, forward, self.entries, self.targets, "all blocks")
        return rounding

    def layer_wise(self) -> Rounding:
        """One block after the other, each given what the rounded ones before it give."""
        whole = self.rounding(self.architecture.blocks)
        rough, fine = self.entries, self.entries
        for block in self.architecture.blocks:
            rounding = self.rounding([block])

            def forward(entry: Tensor, hooks: Hooks, block: Block = block) -> Tensor:
                return block_forward(block, entry, self.tensors, hooks)

            with torch.no_grad():
                fine = torch.cat([forward(part, PLAIN) for part in fine.split(PIECE)])
            self.learn(rounding, forward, rough, fine, f"block {block.index}")
            with torch.no_grad():
                rough = torch.cat([forward(part, rounding) for part in rough.split(PIECE)])
            _adopt(whole, rounding)
        return whole

    def calibrated_again(self, rounding: Rounding) -> None:
        """Where the ranges were not learned: take those of the transformed model if they lose less."""
        before, kept = self.loss(rounding), rounding.ranges
        watching = Transformed(self.bits, rounding.transforms, self.tensors)
        with torch.no_grad():
            self._watch(watching)
        rounding.ranges = Ranges(watching.grids(self.bits))
        if not self.loss(rounding) < before:
            rounding.ranges = kept

    def folded(self, rounding: Rounding) -> QuantizedModel:
        """Transforms and clipping folded into the weights, everything on its grid."""
        recipe = self.recipe
        tensors: dict[str, F32] = {}
        matrices: dict[str, OnGrid] = {}
        clipping = rounding.clipping
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if name not in clipping.each:
                    tensors[name] = rounding.weight(name, tensor).detach().numpy().copy()
                    continue
                moved = rounding.transforms.apply(name, tensor, self.tensors).numpy()
                low, high = (clipping.shares(name) if rounding.clipped else torch.ones(2, 1, 1)).numpy()
                grid = weight_grid(
                    moved,
                    recipe.bits,
                    per_channel=clipping.each[name],
                    symmetric=recipe.symmetric,
                    shares=(low, high),
                )
                matrices[name] = OnGrid.of(moved, grid)
        return QuantizedModel(self.architecture, recipe.bits, tensors, matrices, rounding.ranges.fixed())


def quantize(
    architecture: Architecture,
    tensors: Mapping[str, F32],
    texts: I32,
    recipe: Recipe = Recipe(),
    tell: Callable[[str], None] = lambda text: None,
    *,
    copied: bool = True,
) -> QuantizedModel:
    """The model of `tensors` (every tensor by name, f32) on the grids of `recipe`, calibrated and learned on
    `texts` i32 [pieces, length]; `tell` hears of progress. `copied` False smooths `tensors` in place.

    Raises UserError for a graph that is not known, for no text, and for what is not finite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        job = Job(architecture, tensors, texts, recipe, tell, copied)
        if recipe.mode == "e2e":
            rounding = job.end_to_end()
        elif recipe.mode == "layerwise":
            rounding = job.layer_wise()
        else:
            rounding = job.rounding(architecture.blocks)
        if recipe.mode in ("e2e", "layerwise") and not recipe.ranges:
            job.calibrated_again(rounding)
        return job.folded(rounding)


def simulate(model: QuantizedModel, tokens: I32) -> F32:
    """Logits f32 [texts, n, vocabulary] of `tokens` i32 [texts, n], every number on its grid, in
    floats."""
    weights = {name: torch.from_numpy(values) for name, values in model.tensors.items()}
    weights |= {name: torch.from_numpy(matrix.dense()) for name, matrix in model.matrices.items()}
    return logits(model.architecture, weights, tokens, Fixed(model.grids))


def logits(
    architecture: Architecture, weights: Mapping[str, Tensor], tokens: I32, hooks: Hooks = PLAIN
) -> F32:
    """Logits f32 [texts, n, vocabulary] through `hooks`, some texts at a time."""
    found = []
    with torch.no_grad():
        for part in torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).split(PIECE):
            hidden = through_blocks(architecture, embed(architecture, part, weights), weights, hooks)
            found.append(logits_of(architecture, hidden, weights).numpy())
    return np.concatenate(found)


def _states(modules: Sequence[torch.nn.Module]) -> list[dict[str, Tensor]]:
    return [copy.deepcopy(module.state_dict()) for module in modules]


def _restore(modules: Sequence[torch.nn.Module], states: Sequence[Mapping[str, Tensor]]) -> None:
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)


def _adopt(whole: Rounding, part: Rounding) -> None:
    """Take what was learned for some blocks into what is held for all."""
    with torch.no_grad():
        for mine, other in ((whole.transforms, part.transforms), (whole.clipping, part.clipping)):
            held = dict(mine.named_parameters())
            for name, values in other.named_parameters():
                held[name].copy_(values)
        for where, number in part.ranges.number.items():
            place = whole.ranges.number[where]
            whole.ranges.stretch[place] = part.ranges.stretch[number]
            whole.ranges.lift[place] = part.ranges.lift[number]
