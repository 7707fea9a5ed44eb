"""How far the signed Hard-Swish turns gradients, on the pretrained backbone.

The bar is the activation's own: the same outward gradient (that of the exact network) sent back through every
Hard-Swish of a block by its sign and by its slope, all of a block's together. A cosine of one activation is
0.90 for values drawn normally around 0 with deviation 1, less for smaller ones. Rows without a bar say what
becomes of it further down: in the gradient of a block's weights when that block alone is signed, and when all
are.
"""

from __future__ import annotations

from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mobiletl import _data
from haversack.bench.mobiletl._bench import bench
from haversack.bench.mobiletl.memory import torch_or_unavailable

TOP, ROWS = 3, 128


def rows() -> list[Row]:
    """One bar, and what follows from it."""
    return [
        Row(
            "cosine",
            "lowest cosine between what signed and exact Hard-Swish send back, over the three top blocks",
            "cosine",
            "quality",
            Bar(">=", 0.9),
            judged="ours",
        ),
        Row(
            "cosine-weights",
            "the same of the gradient of a block's weights, that block alone signed",
            "cosine",
            "quality",
        ),
        Row("cosine-all", "the same with all three blocks and the last layers signed", "cosine", "quality"),
    ]


@bench.measure(*rows(), seconds=60)
def cosines(run: Run) -> Outcomes:
    """Of one batch of the new classes, behind a fresh classifier."""
    torch = torch_or_unavailable()
    from haversack.bench.mobiletl._backbone import backbone
    from haversack.bench.mobiletl._transfer import opened
    from haversack.train.parameters.mobiletl import MobileTL
    from haversack.train.parameters.mobiletl_torch import mobiletl

    network = opened(backbone(run.say))
    network.new_head(_data.AFTER, run.seed)
    train, _ = _data.read(_data.AFTER)
    module, count = network.module, len(network.record.blocks)
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(run.seed))
    chosen = train.taken(drawn[:ROWS].numpy())
    x = torch.from_numpy(network.maps(chosen.pictures, count - TOP))
    labels = torch.from_numpy(chosen.labels)
    names = [f"blocks.{number}" for number in range(count - TOP, count)]

    mobiletl(module, MobileTL(blocks=TOP, act="exact"))
    exact = gradients(module, x, labels, count - TOP)
    activations = activation_cosines(module, x, labels, count - TOP)
    alone = {}
    for name in names:
        block = module.blocks[int(name.split(".")[1])]
        with_mask(block)
        alone[name] = cosine_of(name, gradients(module, x, labels, count - TOP), exact)
        mobiletl(module, MobileTL(blocks=TOP, act="exact"))
    mobiletl(module, MobileTL(blocks=TOP))
    signed = gradients(module, x, labels, count - TOP)
    everything = {name: cosine_of(name, signed, exact) for name in (*names, "final", "hidden")}
    return {
        "cosine": lowest(activations),
        "cosine-weights": lowest(alone),
        "cosine-all": lowest(everything),
    }


def lowest(found: dict[str, float]) -> Outcome:
    """The lowest of them, all in the note."""
    note = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    return Outcome.single(min(found.values()), name="signed", note=note)


def gradients(module: Any, x: Any, labels: Any, start: int) -> dict[str, Any]:
    """Gradient by name of everything that learns."""
    from torch.nn.functional import cross_entropy

    module.zero_grad(set_to_none=True)
    cross_entropy(module(x, start), labels).backward()
    return {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}


def with_mask(block: Any) -> None:
    """The block's Hard-Swish layers signed, nothing else."""
    from haversack.train.parameters.mobiletl_torch import MaskedHardSwish

    for unit in (block.expand, block.depthwise):
        unit.act = MaskedHardSwish()


def activation_cosines(module: Any, x: Any, labels: Any, start: int) -> dict[str, float]:
    """By block: the cosine between the exact network's outward gradients by [x > 0] and by the slope."""
    import numpy as np
    from torch.nn.functional import cross_entropy

    from haversack.train.parameters.mobiletl import hard_swish_slope, signed_back, signed_mask

    seen: dict[str, list[tuple[Any, Any]]] = {}

    def watch(name: str) -> Any:
        def hook(unit: Any, inputs: tuple[Any, ...], output: Any) -> None:
            values = inputs[0].detach().numpy()
            output.register_hook(lambda outward: seen.setdefault(name, []).append((values, outward.numpy())))

        return hook

    handles = [
        unit.act.register_forward_hook(watch(f"blocks.{number}"))
        for number in range(start, len(module.blocks))
        for unit in (module.blocks[number].expand, module.blocks[number].depthwise)
    ]
    module.zero_grad(set_to_none=True)
    cross_entropy(module(x, start), labels).backward()
    for handle in handles:
        handle.remove()
    found = {}
    for name in sorted(seen):
        signed = [signed_back(outward, signed_mask(values, "hard-swish")) for values, outward in seen[name]]
        exact = [outward * hard_swish_slope(values) for values, outward in seen[name]]
        one, other = (np.concatenate([each.ravel() for each in side]) for side in (signed, exact))
        found[name] = float(one @ other / np.sqrt((one @ one) * (other @ other)))
    return found


def cosine_of(group: str, one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between two gradients of all tensors of a group, each as one vector."""
    import torch

    names = [name for name in one if name.startswith(f"{group}.")]
    flat = [torch.cat([side[name].flatten() for name in names]) for side in (one, other)]
    return float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))
