"""Published detectors as teachers, at their real size: the names and shapes of the public files of
EfficientDet-D0 to D2 and Faster R-CNN R50-FPN with drawn weights, packed, and a picture of 384 x 384 sent
through both halves."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.slimmable_split_encoders._bench import bench
from haversack.bench.slimmable_split_encoders._checkpoints import (
    Shape,
    drawn,
    efficientdet_shapes,
    faster_rcnn_shapes,
)
from haversack.core.memory import run_measured
from haversack.models.vision.slimmable import restore
from haversack.share._split_data import made
from haversack.share._split_frame import HEAD_BYTES
from haversack.share._split_halves import SlimEncoder, SplitServer, fed_with
from haversack.share._split_memory import serving_plan
from haversack.share._split_pack import open_split

SIDE = 384
PAYLOAD = (6_912, 13_824, 20_736, 27_648)
CATEGORIES = tuple(range(1, 91))
CLASSES = tuple(f"class {number}" for number in CATEGORIES)
SERVED = """
import sys
from pathlib import Path
from haversack.share._split_halves import SplitServer
print(len(SplitServer(sys.argv[1]).decode(Path(sys.argv[2]).read_bytes())[1]["detections"]))
"""


class Passed(NamedTuple):
    """What one detector took: bytes that differ from the paper's, the largest difference between the
    server's graph and PyTorch over the largest number, seconds to read the checkpoint and to write the
    pack, milliseconds of one frame on the server, MiB planned and measured."""

    off: int
    apart: float
    read_s: float
    write_s: float
    frame_ms: float
    planned: float
    measured: float


def checkpoints(quick: bool) -> Mapping[str, Mapping[str, Shape]]:
    """Name -> shapes of the state dict."""
    found = {"D0": efficientdet_shapes("d0")}
    if not quick:
        found |= {size.upper(): efficientdet_shapes(size) for size in ("d1", "d2")}
        found["R50-FPN"] = faster_rcnn_shapes()
    return found


def passed(shapes: Mapping[str, Shape], seed: int, folder: Path) -> Passed:
    """Read a checkpoint of these shapes as the command does, pack it, and send one picture."""
    import torch

    from haversack.formats.safetensors import write_safetensors
    from haversack.models.vision._slim_record import SplitNet
    from haversack.models.vision._slim_student_torch import Pictures
    from haversack.models.vision.slimmable_torch import Student, modes_of, modules_of, tensors_of
    from haversack.share._split_data import SplitData, fit_frame
    from haversack.share._split_pack import rounded, write_split
    from haversack.share._split_teachers import read_checkpoint
    from haversack.share._split_train_torch import teacher_of_checkpoint

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    file = folder / "checkpoint.safetensors"
    write_safetensors(
        file, ((name, "f32", each.shape, each.tobytes()) for name, each in drawn(shapes, seed).items())
    )
    began = time.perf_counter()
    published = read_checkpoint(str(file))
    shown: Pictures = fit_frame(made(1, seed, "test").pictures[0], SIDE)
    teacher = teacher_of_checkpoint(
        published, SplitData("detect", CLASSES, shown[None], (), None, CATEGORIES)
    )
    read = time.perf_counter() - began
    net = SplitNet("detect", CLASSES, SIDE, 4, teacher.net.detector)
    student = Student(net)
    tensors = rounded(tensors_of(teacher, student))
    del published, teacher, student
    gc.collect()
    began = time.perf_counter()
    path = folder / "published.pack"
    write_split(path, net, (1.0, 2.0, 1.0, 0.5), tensors, dict.fromkeys(modes_of(4), 0.1), 0.2, "mAP@0.5", {})
    written = time.perf_counter() - began
    encoder, server = SlimEncoder(path), SplitServer(path)
    sizes = []
    for bits in range(1, 5):
        encoder.set_mode(4, bits)
        data = encoder.encode(shown)
        sizes.append(len(data) - HEAD_BYTES)
    cells, low, step = encoder.cells(shown)
    said = server.half.run(fed_with(cells, low, step, 4, 4))
    apart = 0.0
    with torch.no_grad():
        whole, held = modules_of(net, tensors)
        sent = torch.from_numpy(restore(cells, low, step))
        wanted = whole.answers(held.decode(sent[None], (4, 4)))  # type: ignore[operator]
        for name, each in wanted.items():
            apart = max(apart, float(np.abs(said[name] - each[0].numpy()).max() / each.abs().max()))
    began = time.perf_counter()
    server.decode(data)
    frame_ms = 1000 * (time.perf_counter() - began)
    del server, encoder, whole, held, wanted, said, tensors
    gc.collect()
    (folder / "frame").write_bytes(data)
    done = run_measured([sys.executable, "-c", SERVED, path, folder / "frame"], timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    off = sum(abs(size - wanted_) for size, wanted_ in zip(sizes, PAYLOAD, strict=True))
    planned = serving_plan(*open_split(path)).total_mib
    return Passed(off, apart, read, written, frame_ms, planned, done.peak_mib)


@bench.measure(
    Row(
        "published-payload",
        "bytes of pictures of 384 x 384 at 1 to 4 bits that differ from 6,912 b, EfficientDet-D0 to D2 and "
        "Faster R-CNN R50-FPN",
        "B",
        "bytes",
        Bar("==", 0.0),
        judged="ours",
        published="6.9k / 13.8k / 20.7k / 27.6k",
        quick=True,
    ),
    Row(
        "published-graph",
        "largest difference of the server's graph from PyTorch over the largest number, at the detectors' "
        "real sizes",
        "share",
        "quality",
        Bar("<=", 1e-4),
        judged="ours",
        quick=True,
    ),
    Row(
        "published-memory",
        "memory of serving a published detector, measured over planned: the one that is farthest off",
        "MiB",
        "memory",
        Bar("in", (0.75, 1.25)),
        quick=True,
    ),
    seconds=85,
    quick_seconds=12,
)
def real_sizes(run: Run) -> Outcomes:
    found: dict[str, Passed] = {}
    for name, shapes in checkpoints(run.quick).items():
        run.say(name)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = passed(shapes, run.seed % 1000, Path(folder))
    farthest = max(found.values(), key=lambda one: abs(np.log(one.measured / one.planned)))
    times = "; ".join(
        f"{name}: read {one.read_s:.1f} s, packed {one.write_s:.1f} s, a frame {one.frame_ms:.0f} ms"
        for name, one in found.items()
    )
    sizes = "; ".join(
        f"{name}: planned {one.planned:.0f}, measured {one.measured:.0f}" for name, one in found.items()
    )
    return {
        "published-payload": Outcome.single(
            sum(one.off for one in found.values()), note=f"names and shapes of the public files; {times}"
        ),
        "published-graph": Outcome.single(
            max(one.apart for one in found.values()),
            note="drawn weights as a pack keeps them; all the heads' numbers of one picture",
        ),
        "published-memory": Outcome.single(
            farthest.measured,
            farthest.planned,
            against="planned",
            note=f"one thread, a process of its own; {sizes}",
        ),
    }
