"""Which layers are worth their memory: gains measured one by one, and the best choice within a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.train.parameters._sparse_memory import (
    KIB_BITS,
    RATIOS,
    Conv,
    Scheme,
    memory_report,
)

POPULATION, GENERATIONS, MUTATION, CROSSOVER = 100, 50, 0.1, 0.5  # [inferred]


@dataclass(frozen=True)
class Contributions:
    """What each choice adds to accuracy: `bias` by depth (0 is none), `weight` by layer and ratio."""

    bias: Mapping[int, float]
    weight: Mapping[tuple[int, float], float]

    def of(self, scheme: Scheme) -> float:
        """The sum over a scheme's choices: contributions are taken to add up."""
        weights = zip(scheme.layers, scheme.ratios, strict=True)
        return self.bias.get(scheme.biases, 0.0) + sum(
            self.weight.get((layer, ratio), 0.0) for layer, ratio in weights if ratio
        )

    def write(self, path: Path) -> None:
        """As JSON."""
        weight = [[layer, ratio, gain] for (layer, ratio), gain in sorted(self.weight.items())]
        bias = [[depth, gain] for depth, gain in sorted(self.bias.items())]
        path.write_text(json.dumps({"bias": bias, "weight": weight}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Contributions:
        """What `write` wrote. Raises UserError without the file, DamagedFileError for anything else in it."""
        try:
            content = json.loads(path.read_bytes()[: 1 << 22])
            bias = {int(depth): float(gain) for depth, gain in content["bias"]}
            weight = {(int(i), float(ratio)): float(gain) for i, ratio, gain in content["weight"]}
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}.", field="contributions", given=str(path)
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedFileError(
                path, "it is no list of measured contributions", field="contributions"
            ) from error
        if not np.isfinite([*bias.values(), *weight.values()]).all():
            raise DamagedFileError(path, "a contribution is not finite", field="contributions")
        return cls(bias, weight)


def analysed(
    measure: Callable[[Scheme], float],
    depths: Sequence[int],
    layers: Sequence[int],
    ratios: Sequence[float] = RATIOS,
) -> Contributions:
    """Gains of `measure` (held-out accuracy after training a scheme): of biases at each of `depths`, and of
    one layer's weights at each ratio beside the biases of the greatest depth."""
    base = measure(Scheme(0))
    bias = {depth: measure(Scheme(depth)) - base for depth in depths}
    deepest = max(depths)
    beside = base + bias[deepest]
    weight = {
        (layer, ratio): measure(Scheme(deepest, (layer,), (ratio,))) - beside
        for layer in layers
        for ratio in ratios
    }
    return Contributions(bias, weight)


def expected(convs: Sequence[Conv]) -> Contributions:
    """Contributions where none were measured: those that the paper found in general [paper]: the first
    pointwise convolution of a block gives the most, later layers more than early ones, more channels more
    with falling return. The numbers are ours [inferred]."""
    total = len(convs)
    bias = {depth: depth / total * (2 - depth / total) for depth in range(total + 1)}
    weight = {}
    for layer, conv in enumerate(convs):
        widening = not conv.depthwise and conv.outputs > conv.channels
        share = (1.0 if widening else 0.35) * ((layer + 1) / total) ** 2
        for ratio in RATIOS:
            if conv.kept(ratio):
                weight[layer, ratio] = share * ratio**0.5
    return Contributions(bias, weight)


def best_scheme(convs: Sequence[Conv], features: int, gains: Contributions, budget_kib: float) -> Scheme:
    """The scheme with the greatest sum of contributions within the budget, exactly.

    Layers are taken from the last to the first; of all choices so far only those are kept that no cheaper
    one equals (cost in bytes, so at most budget many). Raises UserError below the cost of the classifier.
    """
    total, room = len(convs), _room(convs, features, budget_kib)
    costs, values = np.zeros(1, np.int64), np.zeros(1)
    history: list[tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[float, ...]]] = []
    best, best_value, best_at = Scheme(0), gains.bias.get(0, 0.0), (0, 0)
    base = 0
    for depth in range(1, total + 1):
        layer = total - depth
        base += convs[layer].bias_bits()
        if base > room:
            break
        options = [0.0] + [ratio for ratio in RATIOS if gains.weight.get((layer, ratio), 0.0) > 0]
        all_costs = np.concatenate([costs + _option_bits(convs[layer], ratio) for ratio in options])
        all_values = np.concatenate(
            [values + (gains.weight[layer, ratio] if ratio else 0.0) for ratio in options]
        )
        order = np.lexsort((-all_values, all_costs))
        order = order[all_costs[order] <= room - base]
        kept = all_values[order] > np.concatenate(([-np.inf], np.maximum.accumulate(all_values[order])[:-1]))
        order = order[kept]
        history.append((order % len(costs), order // len(costs), tuple(options)))
        costs, values = all_costs[order], all_values[order]
        if depth in gains.bias and gains.bias[depth] + values[-1] > best_value:
            best_value, best_at = gains.bias[depth] + values[-1], (depth, len(values) - 1)
    depth, state = best_at
    if depth:
        chosen: dict[int, float] = {}
        for step in range(depth, 0, -1):
            parents, picked, options_at = history[step - 1]
            ratio = options_at[int(picked[state])]
            if ratio:
                chosen[total - step] = ratio
            state = int(parents[state])
        layers = tuple(sorted(chosen))
        best = Scheme(depth, layers, tuple(chosen[layer] for layer in layers))
    return best


def evolved_scheme(
    convs: Sequence[Conv], features: int, gains: Contributions, budget_kib: float, seed: int
) -> Scheme:
    """The same question answered as the paper does, by evolution: a good answer, not the best for sure."""
    _room(convs, features, budget_kib)
    generator = np.random.default_rng([seed, 0xE0])
    total = len(convs)
    choices = (0.0, *RATIOS)
    depths = sorted(gains.bias)

    def scheme(genes: npt.NDArray[Any]) -> Scheme:
        depth = depths[int(genes[0])]
        layers = [
            i for i in range(total - depth, total) if gains.weight.get((i, choices[genes[1 + i]]), 0.0) > 0
        ]
        return Scheme(depth, tuple(layers), tuple(choices[genes[1 + i]] for i in layers))

    def fitness(genes: npt.NDArray[Any]) -> float:
        found = scheme(genes)
        if memory_report(convs, found, features).kib > budget_kib:
            return -np.inf
        return gains.of(found)

    def drawn() -> npt.NDArray[Any]:
        genes = np.zeros(total + 1, np.int64)
        genes[0] = generator.integers(len(depths))
        learning = generator.random(total) < 0.1
        genes[1:][learning] = generator.integers(1, len(choices), int(learning.sum()))
        return genes

    population = [np.zeros(total + 1, np.int64)] + [drawn() for _ in range(POPULATION - 1)]
    for _ in range(GENERATIONS):
        population.sort(key=fitness, reverse=True)
        parents = population[: POPULATION // 2]
        children: list[npt.NDArray[Any]] = []
        while len(parents) + len(children) < POPULATION:
            first, second = (parents[int(i)] for i in generator.integers(len(parents), size=2))
            child = np.where(generator.random(total + 1) < CROSSOVER, first, second)
            mutated = generator.random(total + 1) < MUTATION
            child[mutated] = generator.integers(0, len(choices), int(mutated.sum()))
            child[0] = generator.integers(len(depths)) if mutated[0] else min(child[0], len(depths) - 1)
            children.append(child)
        population = parents + children
    best = max(population, key=fitness)
    return scheme(best) if np.isfinite(fitness(best)) else Scheme(0)


def _option_bits(conv: Conv, ratio: float) -> int:
    return conv.weight_bits(ratio) + conv.input_bits(ratio) if ratio else 0


def _room(convs: Sequence[Conv], features: int, budget_kib: float) -> int:
    """Bits beside those of the classifier. Raises UserError where there is less than that."""
    least = memory_report(convs, Scheme(0), features).bits
    room = int(budget_kib * KIB_BITS) - least
    if room < 0:
        raise UserError(
            f"kib={budget_kib:g} is below what the classifier alone takes, {least / KIB_BITS:.2f} KiB; "
            f"give at least {least / KIB_BITS:.2f}.",
            field="kib",
            given=budget_kib,
            nearest=round(least / KIB_BITS + 0.005, 2),
        )
    return room
