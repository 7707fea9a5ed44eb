"""Bits layer by layer: what each layer's loss of bits costs, measured, and the bits that fit a budget best.

A layer is the matrices of a block that share one input. Its sensitivity at some bits is what the loss on
calibration text rises by when it alone has them and every other layer has 8: the layer is taken from the pack
that GPTQ made at those bits, all others from that of 8 bits. The rise is the expected one: the divergence
from the 8-bit model's predictions of each next token, which others report beside perplexity. The rise over
the tokens that happen to follow is the same on average, and a few thousand of them hide what one layer does.
The bits of all layers then are a knapsack: the smallest sum of sensitivities within the bytes that there are,
solved exactly.
Sums are not quite what layers lose together, so what was found is held against the uniform pack that it would
replace, by its loss on text that no sensitivity was measured on, and dropped where that is no smaller. What
is kept is packed by the precision method `mixed`, calibrated anew, and measured like every other plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from haversack.core.budget import Budget
from haversack.core.pack import Pack, TensorEntry
from haversack.models._architecture import Architecture
from haversack.models._calibration import TokenText
from haversack.models._evaluation import bits_per_byte, next_token_logits
from haversack.plan._candidates import Candidate, Plan, choose, ranked
from haversack.plan._enumerate import Space, full_name, packing_seconds, predict
from haversack.plan._predict import MIB, Sizes, noise
from haversack.plan._search import Clock, Workshop, measured, mild
from haversack.shrink._pipeline import Walk, stored_kinds
from haversack.shrink.precision.gptq import Gptq
from haversack.shrink.precision.mixed import WIDTHS, Mixed, text_of

TOKENS = 4096
"""Of the text that sensitivities are measured on, and of the text that judges the result."""
REFERENCE_NBYTES = 64 << 20
"""Of the 8-bit model's predictions that are kept; a large vocabulary is measured on fewer tokens."""
FEWEST, WINDOW = 256, 512
WIDEST = max(WIDTHS)
MOST_STATES = 2048
"""Of the knapsack's table; beyond, every second sum of bytes is left out."""
State = tuple[int, float, Any]
"""Bytes, loss, and the bits of the last layer with those of the layers before it."""


@dataclass(frozen=True)
class Layer:
    """The matrices `names` of `block` that share an input; `nbytes` by bits; `lost`: its sensitivity by bits,
    in bits per byte."""

    block: int
    names: tuple[str, ...]
    nbytes: Mapping[int, int]
    lost: Mapping[int, float]


@dataclass(frozen=True)
class LayerBits:
    """A layer with the bits that it was given, as the report and `pack --json` say it."""

    layer: Layer
    bits: int

    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        one = self.layer
        return {
            "block": one.block,
            "matrices": list(one.names),
            "bits": self.bits,
            "nbytes": one.nbytes[self.bits],
            "sensitivity": {str(bits): round(lost, 6) for bits, lost in sorted(one.lost.items())},
        }


def best_bits(layers: Sequence[Layer], most_nbytes: int) -> tuple[int, ...] | None:
    """The bits of each layer that lose the least in `most_nbytes` bytes; None where not even the fewest fit.

    Layer after layer, every sum of bytes is kept with its least loss, unless fewer bytes lose no more.
    """
    states: list[State] = [(0, 0.0, None)]
    for index, layer in enumerate(layers):
        rest = sum(min(one.nbytes.values()) for one in layers[index + 1 :])
        grown = [
            (state[0] + layer.nbytes[bits], state[1] + layer.lost[bits], (bits, state[2]))
            for state in states
            for bits in layer.nbytes
            if state[0] + layer.nbytes[bits] + rest <= most_nbytes
        ]
        states = _front(grown)
    if not states:
        return None
    chosen: list[int] = []
    before = states[-1][2]
    while before is not None:
        chosen.append(before[0])
        before = before[1]
    return tuple(reversed(chosen))


def _front(states: list[State]) -> list[State]:
    """By bytes, each losing less than all before it; the smaller of neighbours where they are too many."""
    found: list[State] = []
    for state in sorted(states, key=lambda one: one[:2]):
        if not found or state[1] < found[-1][1]:
            found.append(state)
    while len(found) > MOST_STATES:
        found = [*found[:-1:2], found[-1]]
    return found


def layers_of(walk: Walk, group: int) -> list[Layer]:
    """The layers of a model in order of use, nothing lost yet."""
    kinds = {bits: Gptq(bits=bits, group=group) for bits in WIDTHS}
    return [
        Layer(
            block,
            tuple(names),
            {
                bits: sum(kind.stored(*shape).nbytes(*shape) for shape in map(_shape(walk), names))
                for bits, kind in kinds.items()
            },
            {},
        )
        for block in range(walk.blocks)
        for names in walk.products(block)
    ]


def _shape(walk: Walk) -> Callable[[str], tuple[int, int]]:
    def shape(name: str) -> tuple[int, int]:
        rows, columns = walk.shape(name)
        return rows, columns

    return shape


class Blend:
    """Packs of one model as a `TensorSource` that takes the tensors `chosen` from others than `base`."""

    def __init__(self, base: Pack, chosen: Mapping[str, Pack]) -> None:
        self.path, self._base, self._chosen = base.path, base, chosen
        self.tensors: dict[str, TensorEntry] = {
            name: chosen.get(name, base).tensors[name] for name in base.tensors
        }
        self.files: tuple[Path, ...] = tuple(
            dict.fromkeys(file for pack in (base, *chosen.values()) for file in pack.files)
        )

    def bytes(self, name: str) -> memoryview:
        """The tensor's bytes in the pack that it is taken from."""
        return self._chosen.get(name, self._base).bytes(name)


def loss_of(blend: Blend, architecture: Architecture, text: TokenText, activations: str) -> float:
    """Bits per byte of `text` by the blended model."""
    from haversack.run._engine import Engine
    from haversack.run._source import Model

    window = min(WINDOW, architecture.context)
    with Engine.open(Model(blend, architecture, {}, activations, ()), residency="mapped") as engine:
        return bits_per_byte(engine, text.tokens, text.byte_count, window, 3 * window // 4)


def _chunks(
    blend: Blend, architecture: Architecture, text: TokenText, activations: str
) -> Iterator[NDArray[np.float32]]:
    """Logarithms of the blended model's probabilities f32 [n, vocabulary], some tokens at a time."""
    from haversack.run._engine import Engine
    from haversack.run._source import Model

    window = min(WINDOW, architecture.context)
    with Engine.open(Model(blend, architecture, {}, activations, ()), residency="mapped") as engine:
        for logits, _ in next_token_logits(engine, text.tokens, window, 3 * window // 4):
            logits -= logits.max(axis=1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            yield logits


def divergence(reference: Iterable[NDArray[np.float32]], changed: Iterable[NDArray[np.float32]]) -> float:
    """Sum over tokens of sum p log2(p / q), of logarithms of p and of q [n, vocabulary], in pieces alike."""
    total = 0.0
    for ours, theirs in zip(reference, changed, strict=True):
        total += float((np.exp(ours) * (ours - theirs)).sum(dtype=np.float64))
    return total / math.log(2)


def blended(layers: Sequence[Layer], bits: Sequence[int], packs: Mapping[int, Pack]) -> Blend:
    """The model whose layers have `bits`, out of uniform packs by bits; what is no layer is that of the base
    pack of WIDEST bits."""
    chosen = {
        name: packs[width]
        for layer, width in zip(layers, bits, strict=True)
        for name in layer.names
        if width != WIDEST
    }
    return Blend(packs[WIDEST], chosen)


def measured_layers(
    layers: Sequence[Layer],
    packs: Mapping[int, Pack],
    architecture: Architecture,
    text: TokenText,
    activations: str,
    advance: Callable[[Layer, int], None] = lambda layer, bits: None,
) -> list[Layer]:
    """`layers` with their sensitivities on `text`, bits per byte."""
    full = [WIDEST] * len(layers)
    text = text.part(max(FEWEST, REFERENCE_NBYTES // (4 * architecture.vocabulary)))
    reference = list(_chunks(blended(layers, full, packs), architecture, text, activations))
    found = []
    for index, layer in enumerate(layers):
        lost = {WIDEST: 0.0}
        for bits in sorted(set(packs) - {WIDEST}):
            advance(layer, bits)
            alone = [*full[:index], bits, *full[index + 1 :]]
            changed = _chunks(blended(layers, alone, packs), architecture, text, activations)
            lost[bits] = max(0.0, divergence(reference, changed) / text.byte_count)
        found.append(replace(layer, lost=lost, nbytes={bits: layer.nbytes[bits] for bits in lost}))
    return found


def no_worse(
    layers: Sequence[Layer],
    uniform: int,
    most_nbytes: int,
    packs: Mapping[int, Pack],
    architecture: Architecture,
    text: TokenText,
    activations: str,
) -> tuple[int, ...] | None:
    """The bits of `best_bits` where they lose less of `text` than `uniform` bits for all layers do; None
    where they do not, or are the same."""
    bits = best_bits(layers, most_nbytes)
    if bits is None or set(bits) == {uniform}:
        return None
    ours = loss_of(blended(layers, bits, packs), architecture, text, activations)
    theirs = loss_of(blended(layers, [uniform] * len(layers), packs), architecture, text, activations)
    return bits if ours < theirs else None


# In the search: where a budget of bytes lies between two uniform plans.


class Shop(Workshop, Protocol):
    """The job's workshop, as far as it is asked for more than the search asks."""

    architecture: Architecture
    walk: Any

    @property
    def calibration(self) -> TokenText:
        """The text that methods are calibrated on."""

    def pack(self, plan: Plan) -> Path:
        """The candidate pack of `plan`, written when first asked for."""


@dataclass(frozen=True)
class Refined:
    """All candidates and the chosen one after bits by layer were tried; `layers` as `mixed` has them, none
    where they were not measured to the end; `said`: what came of it, None where there was nothing to try."""

    found: list[Candidate]
    chosen: Candidate
    layers: tuple[LayerBits, ...] = ()
    said: str | None = None


def lines_of(result: Refined) -> list[tuple[str, str]]:
    """The report's lines: what came of bits by layer, and each layer's bits and what it loses at fewer."""
    if result.said is None:
        return []
    lines = [("bits by layer", result.said)]
    for one in result.layers:
        lost = ", ".join(
            f"{value:+.4f} at {bits}" for bits, value in sorted(one.layer.lost.items()) if bits != WIDEST
        )
        names = ", ".join(name.removesuffix(".weight").rpartition(".")[2] for name in one.layer.names)
        lines.append((f"block {one.layer.block}: {names}", f"{one.bits} bits; bits per byte {lost}"))
    return lines


def promising(candidates: Sequence[Candidate], budget: Budget) -> bool:
    """True where some plan of GPTQ may fit and the same plan in WIDEST bits will not."""
    plain = {one.plan: (one, _gptq(one)) for one in candidates if one.plan.structure == "none"}
    wide = [one for one, bits in plain.values() if bits == WIDEST]
    return any(
        bits is not None
        and bits != WIDEST
        and budget.fits(mild(one).demand())
        and any(
            replace(other.plan, precision=one.plan.precision) == one.plan
            and not budget.fits(mild(other).demand())
            for other in wide
        )
        for one, bits in plain.values()
    )


def refined(
    found: Sequence[Candidate],
    chosen: Candidate,
    shop: Shop,
    space: Space,
    budget: Budget,
    reference: float,
    clock: Clock,
    tell: Callable[[str], None],
) -> Refined:
    """What the search found, and the plan with bits by layer beside it where there is one that fits; chosen
    by quality among all that were measured."""
    base = between(found, budget)
    if base is None:
        return Refined([*found], chosen)
    made = mixed_plan(shop, space, base, budget, clock, tell)
    if isinstance(made, str):
        return Refined([*found], chosen, said=made)
    candidate, layers = made
    tell(candidate.plan.label)
    was = base if base.source == "measured" else measured(base, reference, shop)
    more = measured(candidate, reference, shop)
    known = [was if one.plan == was.plan else one for one in found] + [more]
    best = choose(known, budget, "quality") or chosen
    said = (
        f"{more.quality:.4f} bits per byte in {more.storage_mib:.2f} MiB, where {was.plan.precision} has "
        f"{was.quality:.4f} in {was.storage_mib:.2f}"
    )
    return Refined(known, best, tuple(layers), said)


def between(found: Sequence[Candidate], budget: Budget) -> Candidate | None:
    """The best uniform GPTQ plan that fits, a measured one where there is one, if the same plan of more bits
    does not; else None."""
    if budget.ram_mib is None and budget.storage_mib is None:
        return None
    plain = [one for one in found if one.plan.structure == "none" and _gptq(one) is not None]
    fits = [one for one in plain if one.plan.residency != "streamed" and budget.fits(one.demand())]
    seen = [one for one in fits if one.source == "measured"]
    base = next(iter(ranked(seen or fits, "quality")), None)
    if base is None or _gptq(base) == WIDEST:
        return None
    more = [
        one
        for one in plain
        if replace(one.plan, precision=base.plan.precision) == base.plan and _gptq(one) == WIDEST
    ]
    return base if more and not any(budget.fits(one.demand()) for one in more) else None


def _gptq(candidate: Candidate) -> int | None:
    """The bits of a plan of GPTQ."""
    from haversack.core import index

    if candidate.plan.precision.partition(":")[0] != Gptq.name:
        return None
    method = index.create("shrink", "precision", candidate.plan.precision)
    return method.bits if isinstance(method, Gptq) else None


def mixed_plan(
    shop: Shop,
    space: Space,
    base: Candidate,
    budget: Budget,
    clock: Clock,
    tell: Callable[[str], None],
) -> tuple[Candidate, list[LayerBits]] | str:
    """The predicted candidate whose layers have bits of their own in place of `base`, a uniform plan of GPTQ,
    with the layers; in words why there is none."""
    from haversack.core import index

    method = index.create("shrink", "precision", base.plan.precision)
    assert isinstance(method, Gptq)
    layers = layers_of(shop.walk, method.group)
    packing = len(WIDTHS) * packing_seconds(shop.walk, method, space.calibration_tokens)
    if clock.left_s < packing:
        return f"packing it takes about {packing:.0f} s more than the effort leaves"
    packs = {}
    for width in WIDTHS:
        choice = full_name(replace(method, bits=width), ("bits", "group"))
        packs[width] = Pack.open(shop.pack(replace(base.plan, precision=choice)))
    first, second = halves(shop.calibration)
    begun = time.monotonic()
    loss_of(blended(layers, [WIDEST] * len(layers), packs), shop.architecture, first, base.plan.activations)
    needed = (time.monotonic() - begun) * (len(WIDTHS) - 1) * len(layers) + packing / len(WIDTHS)
    if clock.left_s < needed:
        return f"sensitivities of {len(layers)} layers take about {needed:.0f} s, more than the effort leaves"
    known = measured_layers(
        layers,
        packs,
        shop.architecture,
        first,
        base.plan.activations,
        lambda layer, bits: tell(f"sensitivity of block {layer.block}, {layer.names[0]}, {bits} bits"),
    )
    most = layer_limit(space, base, budget, known, method.group)
    bits = no_worse(known, method.bits, most, packs, shop.architecture, second, base.plan.activations)
    if bits is None:
        return f"no bits by layer in {most:,} bytes lose less than {method.bits} for all"
    mixed = Mixed(layers=_text(known, bits), group=method.group)
    found = candidate_of(space, base, mixed)
    chosen = [LayerBits(layer, width) for layer, width in zip(known, bits, strict=True)]
    return found, chosen


def halves(text: TokenText) -> tuple[TokenText, TokenText]:
    """Two parts of a text of at most TOKENS tokens each, that share none: its beginning and its end."""
    count = min(TOKENS, len(text.tokens) // 2)
    share = round(text.byte_count * count / len(text.tokens))
    return (
        TokenText(text.source, text.tokens[:count], share),
        TokenText(text.source, text.tokens[len(text.tokens) - count :], share),
    )


def _text(layers: Sequence[Layer], bits: Sequence[int]) -> str:
    blocks: dict[int, list[int]] = {}
    for layer, width in zip(layers, bits, strict=True):
        blocks.setdefault(layer.block, []).append(width)
    return text_of(tuple(tuple(block) for block in blocks.values()))


def layer_limit(space: Space, base: Candidate, budget: Budget, layers: Sequence[Layer], group: int) -> int:
    """Bytes that all layers may take together: those of `base`, and what the budget leaves beside it."""
    left = [float("inf")]
    if budget.storage_mib is not None:
        left.append(budget.storage_mib - base.storage_mib)
    if budget.ram_mib is not None:
        left.append(budget.ram_mib - base.ram_mib)
    smallest = Mixed(layers=_text(layers, [min(WIDTHS)] * len(layers)), group=group)
    outside = _sizes(space, smallest).weights - sum(layer.nbytes[min(WIDTHS)] for layer in layers)
    method = space.method(base.plan.precision, base.plan.structure)
    return _sizes(space, method).weights - outside + int(min(left) * MIB)


def _sizes(space: Space, method: Any) -> Sizes:
    from haversack.shrink._language import LanguageWalk

    kinds = stored_kinds(LanguageWalk(space.architecture), method, space.policy)
    return Sizes.of(space.architecture, kinds)


def candidate_of(space: Space, base: Candidate, method: Mixed) -> Candidate:
    """What prediction says of `method` in place of the precision of `base`."""
    plan = replace(base.plan, precision=full_name(method, ("layers", "group")))
    added = noise(method.noise(), plan.activations, plan.cache_type)
    return replace(predict(space, plan, _sizes(space, method), added), calibrated=True)
