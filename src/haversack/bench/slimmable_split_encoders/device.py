"""The device: time by members, beside the whole teacher; changing the mode beside loading another model; the
memory of one ensemble beside four encoders."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.slimmable_split_encoders._bench import SHIPPED, bench, pack, pictures
from haversack.bench.slimmable_split_encoders.quality import _teacher
from haversack.core.pack import Pack
from haversack.models.vision.slimmable import member_shapes, parameters
from haversack.share._split_halves import SlimEncoder, session
from haversack.share._split_pack import member_name

PAIRS = 41
WATCHED = (*SHIPPED, "bench/slimmable_split_encoders/device.py")


def timed(work: Callable[[], object], times: int = 5) -> float:
    """Milliseconds of one call, the least of some."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return min(taken)


@bench.measure(
    Row(
        "four-over-one",
        "time to encode a picture with four members over one member",
        "ms",
        "time",
        Bar("in", (3.2, 4.6)),
        published="266 over 66 ms: 4.0",
        quick=True,
    ),
    Row(
        "one-over-teacher",
        "time to encode with one member over running the whole teacher on the device",
        "ms",
        "time",
        Bar("<=", 0.2),
        quick=True,
    ),
    Row("two-over-one", "the same, two members", "ms", "time", published="134 over 66 ms: 2.0"),
    Row("three-over-one", "the same, three members", "ms", "time", published="203 over 66 ms: 3.1"),
    Row(
        "numpy-over-runtime",
        "time to encode with four members by numpy alone over ONNX Runtime",
        "ms",
        "time",
    ),
    seconds=20,
    quick_seconds=10,
    watches=WATCHED,
)
def times(run: Run) -> Outcomes:
    picture = pictures(run).pictures[0]
    encoder, plain = SlimEncoder(pack()), SlimEncoder(pack(), "numpy")
    teacher = _teacher().run  # type: ignore[attr-defined]

    def encode(one: SlimEncoder, k: int) -> Callable[[], float]:
        def work() -> float:
            one.set_mode(k, 4)
            return timed(lambda: one.encode(picture))

        return work

    sides = {f"{k} members": encode(encoder, k) for k in range(1, 5)}
    sides |= {"teacher": lambda: timed(lambda: teacher(None, {"picture": picture}))}
    sides |= {"numpy": encode(plain, 4)}
    for work in sides.values():
        work()
    taken = run.interleave(sides, 15 if run.quick else PAIRS)
    note = "one thread; picture in, frame out: norm, members, quantizer, packing"
    return {
        "four-over-one": Outcome.of(taken, ours="4 members", baseline="1 members", note=note),
        "two-over-one": Outcome.of(taken, ours="2 members", baseline="1 members", note=note),
        "three-over-one": Outcome.of(taken, ours="3 members", baseline="1 members", note=note),
        "one-over-teacher": Outcome.of(taken, ours="1 members", baseline="teacher", note=note),
        "numpy-over-runtime": Outcome.of(taken, ours="numpy", baseline="4 members", note=note),
    }


@bench.measure(
    Row(
        "switch-ms",
        "changing the mode",
        "ms",
        "time",
        Bar("<=", 1.0),
        judged="ours",
        published="0",
        quick=True,
    ),
    Row(
        "reload-over-switch",
        "loading a static encoder of four members over changing the mode",
        "ms",
        "time",
        Bar(">=", 50.0),
        published="133 to 559 ms to load, 994 to 2,722 ms to warm up",
        quick=True,
    ),
    seconds=10,
    quick_seconds=5,
    watches=WATCHED,
)
def switching(run: Run) -> Outcomes:
    encoder = SlimEncoder(pack())
    opened = Pack.open(pack())
    graphs = [opened.read_file(member_name(at)) for at in range(4)]

    def switch() -> float:
        began = time.perf_counter()
        encoder.set_mode(1, 1)
        encoder.set_mode(4, 4)
        return 500 * (time.perf_counter() - began)

    def reload() -> float:
        return timed(lambda: [session(graph, 1, "static") for graph in graphs], 1)

    switch(), reload()
    taken = run.interleave({"set_mode": switch, "reload": reload}, 15)
    switched = {"ours": taken["reload"], "base": taken["set_mode"]}
    return {
        "switch-ms": Outcome.of({"set_mode": taken["set_mode"]}, ours="set_mode"),
        "reload-over-switch": Outcome.of(
            {"loading a static encoder": switched["ours"], "set_mode": switched["base"]},
            ours="loading a static encoder",
            baseline="set_mode",
            note="four sessions of ONNX Runtime from bytes at hand, without reading a disk",
        ),
    }


@bench.measure(
    Row(
        "ensemble-over-largest",
        "numbers of the resident ensemble over those of the largest static encoder",
        "numbers",
        "memory",
        Bar("<=", 1.1),
        published="one model of 86 MB",
        quick=True,
    ),
    Row(
        "all-statics-over-largest",
        "numbers of four static encoders, one to four members, over the largest",
        "numbers",
        "memory",
        Bar(">=", 2.2),
        published="153 to 240 MB",
        quick=True,
    ),
    Row(
        "device-pack",
        "the device's half over the whole pack",
        "B",
        "bytes",
        quick=True,
    ),
    seconds=5,
    quick_seconds=5,
    watches=WATCHED,
)
def memory(run: Run) -> Outcomes:
    record = SlimEncoder(pack()).record
    resident = parameters(member_shapes(record.members)) + 4  # the clips
    largest = parameters(member_shapes(4)) + 1
    every = sum(parameters(member_shapes(k)) + 1 for k in range(1, 5))
    opened = Pack.open(pack())
    device = sum(
        entry.size for name, entry in opened.record.files.items() if name.startswith(("member", "device"))
    )
    runtime = statistics.median(len(opened.read_file(member_name(at))) for at in range(4))
    note = f"a member's graph has {runtime:.0f} bytes"
    return {
        "ensemble-over-largest": Outcome.single(resident, largest, against="largest static", note=note),
        "all-statics-over-largest": Outcome.single(
            every, largest, name="four statics", against="largest static", note="members of one to four"
        ),
        "device-pack": Outcome.single(device, opened.nbytes, against="the whole pack", note="its graphs"),
    }
