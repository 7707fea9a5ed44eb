"""What MobileTL keeps for the way back, measured where PyTorch saves tensors, and what a process then holds.

A block: stride 1, as many channels out as in, widened by six, on a map of 14 x 14. The trained part: the top
three blocks, the last convolution and the classifier, at the size that the network is made for. The process:
each way in a process of its own, its peak as the system has it.
"""

from __future__ import annotations

import sys
from typing import Any

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench._workers import Worker
from haversack.bench.mobiletl._bench import bench, ours, plain

ROWS, SIDE = 8, 14
NETWORKS = {
    "tiny": ("mobilenetv3_tiny", "the bench's own network, 32 pixels"),
    "v2": ("mobilenetv2_100", "MobileNetV2 at 224 pixels"),
    "v3": ("mobilenetv3_large_100", "MobileNetV3-Large at 224 pixels"),
    "proxyless": ("proxylessnas_mobile", "ProxylessNAS-Mobile at 224 pixels"),
}
PROCESS = {"network": "mobilenetv3_large_100", "rows": 48, "steps": 3}


def block_rows() -> list[Row]:
    """A block of either kind against fine-tuning, and against PyTorch's own layers."""
    return [
        Row(
            "block-v2",
            "a MobileNetV2 block keeps 46 % (+-2) less than in fine-tuning",
            "KiB kept",
            "bytes",
            Bar("in", (0.52, 0.56)),
            published="46.3 % less",
            quick=True,
        ),
        Row(
            "block-v3",
            "a MobileNetV3 block with squeeze-and-excite keeps 53 % (+-2) less than in fine-tuning",
            "KiB kept",
            "bytes",
            Bar("in", (0.45, 0.49)),
            published="53.3 % less",
            quick=True,
        ),
        Row(
            "block-v2-pytorch",
            "a MobileNetV2 block beside PyTorch's own layers, whose ReLU6 keeps floats",
            "KiB kept",
            "bytes",
            quick=True,
        ),
        Row(
            "formula",
            "bytes by which the counter and PyTorch's hooks differ, over both blocks and both ways",
            "bytes",
            "bytes",
            Bar("==", 0),
            judged="ours",
            quick=True,
        ),
    ]


def part_rows() -> list[Row]:
    """The trained part of several networks."""
    return [
        Row(
            f"part-{key}",
            f"three top blocks, last convolution and classifier of {words} keep at least 40 % less",
            "KiB kept",
            "bytes",
            Bar("<=", 0.6),
        )
        for key, (_, words) in NETWORKS.items()
    ]


@bench.measure(*block_rows(), seconds=20, quick_seconds=20)
def blocks(run: Run) -> Outcomes:
    """One block by itself, its inputs with a gradient."""
    from haversack.models.vision import mobilenetv2, mobilenetv3

    kept: dict[str, dict[str, int]] = {}
    differ = 0
    for key, record in (
        ("v2", mobilenetv2.record("mobilenetv2_100")),
        ("v3", mobilenetv3.record("mobilenetv3_tiny")),
    ):
        number = max(index for index, block in enumerate(record.blocks) if block.residual)
        kept[key], off = kept_in_block(record, number)
        differ += off
    found: dict[str, Outcome] = {}
    for key, each in kept.items():
        found[f"block-{key}"] = pair(each["ours"], each["plain"])
    found["block-v2-pytorch"] = pair(kept["v2"]["ours"], kept["v2"]["PyTorch"], "PyTorch's own layers")
    found["formula"] = Outcome.single(differ, name="counter less hooks")
    return found


def pair(kept: int, standard: int, against: str = "fine-tuning", note: str = "") -> Outcome:
    """Bytes kept by both, in KiB."""
    return Outcome.single(kept / 1024, standard / 1024, name="MobileTL", against=against, note=note)


def kept_in_block(record: Any, number: int) -> tuple[dict[str, int], int]:
    """Bytes by way for block `number` of `record`, and how far the counter is off, added up."""
    torch = torch_or_unavailable()
    from haversack.core import index
    from haversack.models.vision import _counts
    from haversack.models.vision._counts import Way
    from haversack.models.vision._inverted_residual_torch import PictureModule
    from haversack.models.vision._record import statistic
    from haversack.train._meter_torch import SavedTensors
    from haversack.train.parameters.mobiletl_torch import exchange, mobiletl

    module, total = PictureModule(record), len(record.blocks)
    module.initialize(0)
    block = module.blocks[number]
    kept, differ = {}, 0
    for key, choice in (("ours", ours(total)), ("plain", plain(total)), ("PyTorch", None)):
        if choice is None:
            learned = frozenset(name for name in record.tensors() if not statistic(name))
            way = Way(learned, frozenset(name for name in module.units()))
            exchange(module, way)
        else:
            way = mobiletl(module, index.create("train", "parameters", choice))  # type: ignore[arg-type]
        x = torch.randn(ROWS, record.blocks[number].inputs, SIDE, SIDE, requires_grad=True)
        with SavedTensors([*block.parameters(), *block.buffers()]) as saved:
            block(x)
        kept[key] = saved.nbytes
        differ += abs(saved.nbytes - _counts.kept_by_block(record.blocks[number], way, ROWS, SIDE))
    return kept, differ


@bench.measure(*part_rows(), seconds=60)
def parts(run: Run) -> Outcomes:
    """Every network with drawn weights: what is kept does not depend on them."""
    import numpy as np

    found = {}
    draw = np.random.default_rng(run.seed)
    for key, (variant, _) in NETWORKS.items():
        kept = {}
        for way, choice in (("ours", ours(3)), ("plain", plain(3))):
            network, learned = drawn_network(variant, choice)
            size = network.record.size
            batch = batch_of(draw, 4, size)
            network.gradients(batch, learned.wanted)
            kept[way] = network.saved_nbytes
        found[f"part-{key}"] = pair(kept["ours"], kept["plain"])
    return found


@bench.measure(
    Row(
        "process",
        "the peak of a process that trains the five top blocks of MobileNetV3-Large is lower with MobileTL",
        "MiB",
        "memory",
        Bar("<=", 0.98),
        quick=True,
    ),
    seconds=120,
    quick_seconds=35,
)
def process(run: Run) -> Outcomes:
    """Each way three times (once in a quick run) in a process of its own, in turn."""
    torch_or_unavailable()

    def peak(choice: str) -> float:
        with Worker([sys.executable, "-m", "haversack.bench.mobiletl._worker"]) as worker:
            return float(worker.ask("train", parameters=choice, **PROCESS)["peak_mib"])

    sides = {"fine-tuning": lambda: peak(plain(5)), "MobileTL": lambda: peak(ours(5))}
    taken = run.interleave(sides, 1 if run.quick else 3)
    note = f"{PROCESS['rows']} pictures a step, the interpreter and PyTorch included in both"
    return {"process": Outcome.of(taken, ours="MobileTL", baseline="fine-tuning", note=note)}


def drawn_network(variant: str, choice: str) -> tuple[Any, Any]:
    """A network of `variant` with drawn weights and ten classes, ready for `choice`."""
    torch_or_unavailable()
    from haversack.core import index
    from haversack.models.vision._folder import variants
    from haversack.models.vision._inverted_residual_torch import PictureModule
    from haversack.train.networks.mobilenet_torch import PictureNetwork

    family, name = variants()[variant]
    module = PictureModule(family.record(name, 10))
    module.initialize(0)
    network = PictureNetwork(variant, module)
    method: Any = index.create("train", "parameters", choice)
    return network, method.prepare(network, 0)


def batch_of(draw: Any, rows: int, size: int) -> Any:
    """Noise with labels of ten classes."""
    import numpy as np

    from haversack.train._network import Batch

    pictures = draw.integers(0, 256, (rows, size, size, 3), np.uint8)
    return Batch(pictures, draw.integers(0, 10, rows))


def torch_or_unavailable() -> Any:
    """PyTorch. Raises Unavailable where it is not installed."""
    try:
        import torch
    except ImportError:
        raise Unavailable("PyTorch is not installed; run: pip install 'haversack[workshop]'") from None
    return torch
