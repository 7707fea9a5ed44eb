"""Claims that cannot be measured here, each with the reason."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcomes, Row, Unavailable
from haversack.bench.tiny_training_256kb._bench import bench

IMAGENET = {"mbv2": 45.7, "mcunet": 54.1, "proxyless": 48.3}


def rows() -> list[Row]:
    """Accuracy of the checkpoints and of the paper's sets."""
    found = [
        Row(
            f"imagenet-{model}",
            f"{model} after rounding: ImageNet top-1 at 128 x 128",
            "%",
            "quality",
            Bar("in", (top - 1, top + 1)),
            judged="ours",
            published=top,
        )
        for model, top in IMAGENET.items()
    ]
    return [
        *found,
        Row("flowers", "flowers-102 with scaling, last 6 layers", "%", "quality", judged="ours",
            published="84.3 -> 88.1"),
        Row("vww", "accuracy on visual wake words equals training in the cloud", "%", "quality",
            published="equal"),
    ]  # fmt: skip


@bench.measure(*rows(), seconds=1)
def elsewhere(run: Run) -> Outcomes:
    images = Unavailable("ImageNet's validation pictures are not to be had here")
    return {
        **{f"imagenet-{model}": images for model in IMAGENET},
        "flowers": Unavailable("flowers-102 is not to be had here; CIFAR-10 stands for it"),
        "vww": Unavailable("the visual wake words pictures are not to be had here"),
    }
