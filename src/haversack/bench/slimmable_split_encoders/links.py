"""The controllers over emulated links: frames in virtual time over waves and walks, and real sockets.

The device's times are the published board's, by members; payloads are those of 96 x 96, rates 20 to 2,000
kB/s upwards, deadlines 100, 200 and 400 ms. An answer takes half a round trip of 2 ms. A late frame counts as
a miss and its quality as 0. What is never changed is one mode on every link: the best of those that reach
97 % on each. The controllers were tuned on other walks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side
from haversack.bench.slimmable_split_encoders._bench import SHIPPED, bench, pack, pictures, table, told
from haversack.core.link import Segment
from haversack.models.vision.slimmable import payload_bytes
from haversack.share._split_device import Shot, SplitDevice
from haversack.share._split_frame import HEAD_BYTES
from haversack.share._split_halves import SlimEncoder, SplitServer
from haversack.share._split_links import Oracle, play, square, walk
from haversack.share._split_links import Outcome as Played
from haversack.share._split_proxy import ThrottledProxy
from haversack.share._split_serve import split_service
from haversack.share.slimmable import Adaptive, Controller, Fixed, Mode, Published

BOARD_MS = {1: 66.0, 2: 134.0, 3: 203.0, 4: 266.0}
"""To encode, by members, on the published board."""
DEADLINES = (100, 200, 400)
REACHED = 0.97
DECODE_MS = 2.0
SECONDS, QUICK_SECONDS = 60.0, 20.0
WATCHED = (*SHIPPED, "share/_split_links.py", "bench/slimmable_split_encoders/links.py")


def traces(run: Run) -> dict[str, list[Segment]]:
    """The links of this run; the tuning's walks have seeds below 100."""
    seeds = [100 + run.seed % 100_000 + at for at in range(1 if run.quick else 4)]
    return {"wave": square(10.0), **{f"walk {seed}": walk(SECONDS, seed) for seed in seeds}}


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


def static(worlds: Sequence[World], deadline: float) -> tuple[Mode, list[Played]]:
    """The best mode that is never changed, and its frames in each world: of those in time often enough in
    every one, else of all."""
    every = {mode: [world.played(Fixed(mode), deadline) for world in worlds] for mode in worlds[0].quality}
    fine = {mode: played for mode, played in every.items() if _worst(played) >= REACHED} or every
    best = max(fine, key=lambda mode: _mean(fine[mode]))
    return best, fine[best]


def _worst(played: Sequence[Played]) -> float:
    return min(one.hits for one in played)


def _mean(played: Sequence[Played]) -> float:
    return statistics.mean(one.quality for one in played)


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
            f"mAP@0.5 of frames within {deadline} ms less that of the best fixed mode that reaches 97 % on "
            "every link",
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
    quality, seconds = _table(run), QUICK_SECONDS if run.quick else SECONDS
    links = traces(run)
    worlds = [World(quality, BOARD_MS, trace, seconds) for trace in links.values()]
    ours = [world.played(Adaptive(quality, world.nbytes, dict(BOARD_MS)), deadline) for world in worlds]
    theirs = [world.played(Published(quality, world.nbytes), deadline) for world in worlds]
    best = [world.oracle(deadline) for world in worlds]
    mode, fixed = static(worlds, deadline)
    note = "; ".join(
        f"{name}: ours {_told(a)}, published {_told(b)}, always {mode} {_told(c)}, oracle {_told(d)}"
        for name, a, b, c, d in zip(links, ours, theirs, fixed, best, strict=True)
    )
    most = f"one who knows the link gains {_mean(best) - _mean(fixed):.1f} over always {mode}"
    return {
        f"hits-{deadline}": Outcome(
            Side("adaptive", (_worst(ours),)), Side("published", (_worst(theirs),)), note
        ),
        f"gain-{deadline}": Outcome.single(_mean(ours) - _mean(fixed), note=f"mean over the links; {most}"),
        f"oracle-gap-{deadline}": Outcome.single(_mean(best) - _mean(ours), note="mean over the links"),
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


within_100 = bench.measure(*_rows(100), seconds=60, watches=WATCHED)(_declare(100))
within_200 = bench.measure(*_rows(200), seconds=40, quick_seconds=15, watches=WATCHED)(_declare(200))
within_400 = bench.measure(*_rows(400), seconds=30, watches=WATCHED)(_declare(400))


@bench.measure(
    Row(
        "hits-by-the-clock",
        "answers within 100 ms over real sockets: encoder played 15 times slower, server, walking links",
        "share",
        "quality",
        Bar(">=", REACHED),
        judged="ours",
    ),
    seconds=60,
    watches=(*WATCHED, *("share/_split_" + part + ".py" for part in ("device", "proxy", "serve"))),
)
def by_the_clock(run: Run) -> Outcomes:
    service, _ = split_service(SplitServer(pack()))
    service.start()
    try:
        played = [_by_the_clock(service.url, run, 100 + run.seed % 100_000 + at) for at in range(3)]
    finally:
        service.stop(2.0)
    shots = [shot for one in played for shot in one]
    counted: dict[Mode, float] = {}
    for shot in shots:
        counted[shot.mode] = counted.get(shot.mode, 0) + 1
    each = ", ".join(f"{statistics.mean(shot.hit for shot in one):.3f}" for one in played)
    lost = sum(shot.answer is None for shot in shots)
    return {
        "hits-by-the-clock": Outcome.single(
            statistics.mean(shot.hit for shot in shots),
            note=f"three links, {each}; frames by bits, {told(counted)}; {lost} lost",
        )
    }


def _by_the_clock(url: str, run: Run, seed: int) -> list[Shot]:
    """Frames of one device over one link."""
    encoder = SlimEncoder(pack())
    nbytes = {mode: payload_bytes(mode[1], 96) + HEAD_BYTES for mode in encoder.record.table}
    controller = Adaptive(encoder.record.table, nbytes)
    host, port = url.removeprefix("http://").split(":")
    with ThrottledProxy(walk(120, seed), host, int(port)) as link:
        device = SplitDevice(encoder, controller, f"http://127.0.0.1:{link.port}", deadline_ms=100, slower=15)
        shots = list(device.run(itertools.islice(itertools.cycle(pictures(run).pictures), 200)))
        device.close()
    return shots
