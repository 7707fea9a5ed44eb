"""The controllers over emulated links: frames in virtual time over waves and walks, and real sockets.

The device's times are this machine's, by members, slowed so that one member takes what it takes on the
published board (66 ms); payloads are those of 96 x 96, rates 20 to 2,000 kB/s, deadlines 100, 200 and 400 ms.
A late frame counts as a miss and its quality as 0. The controllers were tuned on other walks."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Mapping

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.slimmable_split_encoders._bench import bench, pack, pictures, table, told
from haversack.bench.slimmable_split_encoders.device import timed
from haversack.core.link import Segment
from haversack.models.vision.slimmable import payload_bytes
from haversack.share._split_device import SplitDevice
from haversack.share._split_frame import HEAD_BYTES
from haversack.share._split_halves import SlimEncoder, SplitServer
from haversack.share._split_links import Oracle, play, square, walk
from haversack.share._split_links import Outcome as Played
from haversack.share._split_proxy import ThrottledProxy
from haversack.share._split_serve import split_service
from haversack.share.slimmable import Adaptive, Controller, Fixed, Mode, Published

BOARD_MS = 66.0
DEADLINES = (100, 200, 400)
REACHED = 0.97
DECODE_MS = 2.0
SECONDS, QUICK_SECONDS = 60.0, 20.0


def traces(run: Run) -> dict[str, list[Segment]]:
    """The links of this run; the tuning's walks have seeds below 100."""
    seeds = [100 + run.seed % 100_000 + at for at in range(1 if run.quick else 4)]
    return {"wave": square(10.0), **{f"walk {seed}": walk(SECONDS, seed) for seed in seeds}}


@functools.cache
def scaled() -> dict[int, float]:
    """Encode times by members, those of this machine with one member at BOARD_MS."""
    encoder = SlimEncoder(pack())
    picture = _picture(encoder.side)
    found: dict[int, list[float]] = {k: [] for k in range(1, 5)}
    for _ in range(9):
        for k in found:
            encoder.set_mode(k, 4)
            found[k].append(timed(lambda: encoder.encode(picture)))
    here = {k: statistics.median(values) for k, values in found.items()}
    return {k: BOARD_MS * value / here[1] for k, value in here.items()}


def _picture(side: int):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)


class World:
    """One table of qualities, one device, one link."""

    def __init__(
        self, quality: Mapping[Mode, float], encode: Mapping[int, float], trace: list[Segment], seconds: float
    ) -> None:
        self.quality, self.encode, self.trace, self.seconds = quality, encode, trace, seconds
        self.nbytes = {mode: payload_bytes(mode[1], 96) + HEAD_BYTES for mode in quality}

    def played(self, controller: Controller, deadline: float) -> Played:
        """Frames of a controller."""
        return play(
            controller,
            self.trace,
            self.quality,
            self.nbytes,
            self.encode.__getitem__,
            deadline,
            decode_ms=DECODE_MS,
            seconds=self.seconds,
        )

    def oracle(self, deadline: float) -> Played:
        """Frames of one who knows the link."""
        known = Oracle(self.trace, self.quality, self.nbytes, self.encode.__getitem__, DECODE_MS)
        return self.played(known, deadline)

    def static(self, deadline: float) -> tuple[Mode, Played]:
        """The best mode that is never changed: of those in time often enough, else of all."""
        every = {mode: self.played(Fixed(mode), deadline) for mode in self.quality}
        fine = {mode: one for mode, one in every.items() if one.hits >= REACHED} or every
        best = max(fine, key=lambda mode: fine[mode].quality)
        return best, fine[best]


def _rows(deadline: int) -> tuple[Row, ...]:
    quick = deadline == 200
    return (
        Row(
            f"hits-{deadline}",
            f"answers within {deadline} ms, worst link; the published controller's beside it",
            "share",
            "quality",
            Bar(">=", REACHED),
            judged="ours",
            quick=quick,
        ),
        Row(
            f"gain-{deadline}",
            f"mAP@0.5 of frames within {deadline} ms less that of the best fixed mode that reaches 97 %",
            "points",
            "quality",
            Bar(">=", 1.5),
            judged="ours",
            quick=quick,
        ),
        Row(
            f"oracle-gap-{deadline}",
            f"mAP@0.5 within {deadline} ms that one who knows the link has more",
            "points",
            "quality",
            Bar("<=", 2.0),
            judged="ours",
            quick=quick,
        ),
    )


def _measured(run: Run, deadline: int) -> Outcomes:
    quality = {mode: value for mode, value in _table(run).items()}
    hits, publishes, gains, gaps, notes = [], [], [], [], []
    for name, trace in traces(run).items():
        world = World(quality, scaled(), trace, QUICK_SECONDS if run.quick else SECONDS)
        ours = world.played(Adaptive(quality, world.nbytes, dict(scaled())), deadline)
        theirs = world.played(Published(quality, world.nbytes), deadline)
        mode, fixed = world.static(deadline)
        best = world.oracle(deadline)
        hits.append(ours.hits)
        publishes.append(theirs.hits)
        gains.append(ours.quality - fixed.quality)
        gaps.append(best.quality - ours.quality)
        notes.append(
            f"{name}: ours {_told(ours)}, published {_told(theirs)}, always {mode} {_told(fixed)}, "
            f"oracle {_told(best)}"
        )
    note = "; ".join(notes)
    return {
        f"hits-{deadline}": Outcome(
            Side("adaptive", (min(hits),)), Side("published", (min(publishes),)), note
        ),
        f"gain-{deadline}": Outcome.single(statistics.mean(gains), note="mean over the links"),
        f"oracle-gap-{deadline}": Outcome.single(statistics.mean(gaps), note="mean over the links"),
    }


def _told(one: Played) -> str:
    return f"{100 * one.hits:.1f} % and {one.quality:.1f}"


def _table(run: Run) -> dict[Mode, float]:
    """Every mode's mAP@0.5; in a quick run as the pack has it."""
    if run.quick:
        return {mode: 100 * value for mode, value in SlimEncoder(pack()).record.table.items()}
    return table(run)


def _declare(deadline: int) -> Callable[[Run], Outcomes]:
    def measured(run: Run) -> Outcomes:
        return _measured(run, deadline)

    return measured


within_100 = bench.measure(*_rows(100), seconds=60)(_declare(100))
within_200 = bench.measure(*_rows(200), seconds=40, quick_seconds=15)(_declare(200))
within_400 = bench.measure(*_rows(400), seconds=30)(_declare(400))


@bench.measure(
    Row(
        "hits-by-the-clock",
        "answers within 100 ms over real sockets: encoder played 15 times slower, server, a walking link",
        "share",
        "quality",
        Bar(">=", REACHED),
        judged="ours",
    ),
    seconds=60,
)
def by_the_clock(run: Run) -> Outcomes:
    service, _ = split_service(SplitServer(pack()))
    service.start()
    host, port = service.url.removeprefix("http://").split(":")
    encoder = SlimEncoder(pack())
    nbytes = {mode: payload_bytes(mode[1], 96) + HEAD_BYTES for mode in encoder.record.table}
    try:
        with ThrottledProxy(walk(120, 100 + run.seed), host, int(port)) as link:
            device = SplitDevice(
                encoder,
                Adaptive(encoder.record.table, nbytes),
                f"http://127.0.0.1:{link.port}",
                deadline_ms=100,
                slower=15,
            )
            device.greet()
            shots = [
                device.shoot(picture)
                for picture in itertools.islice(itertools.cycle(pictures(run).pictures), 400)
            ]
            device.close()
    finally:
        service.stop(2.0)
    counted: dict[Mode, float] = {}
    for shot in shots:
        counted[shot.mode] = counted.get(shot.mode, 0) + 1
    share = device.hits / len(shots)
    return {
        "hits-by-the-clock": Outcome.single(
            share, note=f"frames by bits, {told(counted)}; {device.lost} lost"
        )
    }
