"""Multiplications of a training step, counted (models/vision/_counts.py has the rule).

The baseline learns everything by full back-propagation: a pass, and twice a pass back less the first layer's
inward gradient. Convolutions and linear layers count, by the same rule on both sides.
"""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mobiletl._bench import bench
from haversack.models.vision._record import PictureNet

NETWORKS = {
    "v3-large": ("mobilenetv3_large_100", "MobileNetV3-Large"),
    "v3-small": ("mobilenetv3_small_100", "MobileNetV3-Small"),
    "tiny": ("mobilenetv3_tiny", "the bench's own network"),
}


def rows() -> list[Row]:
    """MobileNetV3-Large has the bar, as the paper's MobileNetV3 at five blocks on ten classes."""
    return [
        Row(
            f"products-{key}",
            f"five top blocks of {words}: multiplications of a step beside full back-propagation",
            "millions a picture",
            "quality",
            Bar("in", (0.64, 0.70)) if key == "v3-large" else None,
            published="36 % fewer",
            quick=True,
        )
        for key, (_, words) in NETWORKS.items()
    ]


def step_products(record: PictureNet) -> tuple[int, int]:
    """(MobileTL with five blocks, full back-propagation) for one picture."""
    from haversack.models.vision._counts import Way
    from haversack.models.vision._record import statistic
    from haversack.train.parameters.mobiletl import MobileTL, report

    cost = MobileTL(blocks=5).report(record, 1)
    everything = Way(frozenset(name for name in record.tensors() if not statistic(name)))
    full = report(record, everything, 1)
    return (
        cost.forward_products + cost.backward_products,
        full.forward_products + full.backward_products,
    )


@bench.measure(*rows(), seconds=5, quick_seconds=5)
def products(run: Run) -> Outcomes:
    """Ten classes, the pictures that each network is made for."""
    from haversack.models.vision._folder import variants

    found = {}
    for key, (variant, _) in NETWORKS.items():
        family, name = variants()[variant]
        ours, full = step_products(family.record(name, 10))
        found[f"products-{key}"] = Outcome.single(
            ours / 1e6, full / 1e6, name="MobileTL, 5 blocks", against="full back-propagation"
        )
    return found
