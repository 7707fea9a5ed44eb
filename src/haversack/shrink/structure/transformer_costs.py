"""What low-rank weights and low-rank attention cost and save, from formulas; and the cost of a training run.

Papers: Cahyawijaya, "Greenformers" (2021), chapters on efficiency and cost; Wang et al., "Linformer:
Self-Attention with Linear Complexity" (2020).
What is here: operations of an encoder at a sequence length, dense, with factored weights (linear part times
r (in + out) / (in * out)), with Linformer attention (n^2 becomes n k, and two projections are added), and
with both; numbers that attention holds; the length from which Linformer computes less than low-rank weights;
energy, emissions and money of a training run times a measured ratio of step times.
Limits: operations are not time: the planner beside this file measures. A power plant's emissions differ by
country.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from haversack.core.errors import UserError
from haversack.shrink.structure.low_rank import Shape

SYSTEM = 38


def linear_operations(length: int, weights: float) -> float:
    """Multiplications and additions of linear layers with so many weights, for `length` tokens."""
    return 2.0 * length * weights


def attention_operations(length: int, width: int, projected: int | None = None) -> float:
    """Those of scores and mixing; with Linformer over `projected` mixtures, making these included."""
    if projected is None:
        return 4.0 * length**2 * width
    return 8.0 * length * projected * width


@dataclass(frozen=True)
class Encoder:
    """Sizes of a transformer encoder; `rank` of its linear layers (None: dense), `projected` of Linformer."""

    width: int
    feed_forward: int
    blocks: int
    heads: int
    rank: float | None = None
    projected: int | None = None

    def linear_share(self) -> float:
        """Weights of the linear layers over those of dense ones."""
        shapes = [Shape(self.width, self.width)] * 4
        shapes += [Shape(self.width, self.feed_forward), Shape(self.feed_forward, self.width)]
        dense = sum(shape.dense for shape in shapes)
        if self.rank is None:
            return 1.0
        kept = 0
        for shape in shapes:
            rank = shape.rank(self.rank)
            kept += shape.dense if rank is None else shape.factored(rank)
        return kept / dense

    def linear_operations(self, length: int) -> float:
        """Of the linear layers for `length` tokens."""
        weights = 4 * self.width**2 + 2 * self.width * self.feed_forward
        return linear_operations(length, weights * self.linear_share()) * self.blocks

    def attention_operations(self, length: int) -> float:
        """Of attention in all blocks."""
        return attention_operations(length, self.width, self.projected) * self.blocks

    def operations(self, length: int) -> float:
        """Of everything."""
        return self.linear_operations(length) + self.attention_operations(length)

    def attention_numbers(self, length: int) -> int:
        """Scores that one block's attention holds for one text where they are written out."""
        return self.heads * length * (length if self.projected is None else self.projected)


def crossing(low_rank: Encoder, linformer: Encoder, longest: int = 1 << 20) -> int | None:
    """The shortest text for which `linformer` computes less than `low_rank`; None when there is none."""
    low, high = 1, longest
    if linformer.operations(high) >= low_rank.operations(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if linformer.operations(middle) < low_rank.operations(middle):
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class TrainingCost:
    """What a training run takes: energy at the wall, emissions, money."""

    hours: float
    energy_kwh: float
    emissions_kg: float
    cost_usd: float


def training_cost(
    hours: float,
    watts: float,
    *,
    step_time_ratio: float = 1.0,
    power_usage_effectiveness: float = 1.58,
    emissions_kg_per_kwh: float = 0.433,
    usd_per_hour: float = 0.0,
) -> TrainingCost:
    """The cost of a run published as `hours` at `watts`, when a step takes `step_time_ratio` of its time.

    Defaults: the data centre overhead and the mean emissions (0.954 pounds a kWh) of Strubell et al., "Energy
    and Policy Considerations for Deep Learning in NLP" (2019). Raises UserError for what is not positive.
    """
    numbers = {
        "hours": hours,
        "watts": watts,
        "step_time_ratio": step_time_ratio,
        "power_usage_effectiveness": power_usage_effectiveness,
    }
    for name, value in numbers.items():
        if not math.isfinite(value) or value <= 0:
            raise UserError(f"{name}={value} is no positive number.", field=name, given=str(value))
    taken = hours * step_time_ratio
    energy = taken * watts * power_usage_effectiveness / 1e3
    return TrainingCost(taken, energy, energy * emissions_kg_per_kwh, taken * usd_per_hour)


BERT_BASE_PRE_TRAINING = {"hours": 79.0, "watts": 12_041.51, "usd_per_hour": 3_751.0 / 79.0}
"""64 V100 for 79 hours, from the same paper; the money is its lowest cloud price."""
