"""Milliseconds of the sensor and of the consumer beside AVIF through Pillow and beside the codec's own
decoder, pictures in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.seaotter._bench import U8, bench, opened, saved, shipped, unseen

ROUNDS = 9
CALLS = {"sensor": 3, "consumer": 5}


def photograph() -> U8:
    """512 x 512 of a photograph that the shipped codec did not learn from."""
    return np.ascontiguousarray(unseen()[3][:512, :512])


def timed(call: Callable[[], object], calls: int) -> Callable[[], float]:
    """Milliseconds of one of `calls` calls in a row, the fastest."""

    def one() -> float:
        best = float("inf")
        for _ in range(calls):
            start = time.perf_counter()
            call()
            best = min(best, time.perf_counter() - start)
        return 1000 * best

    return one


def avif_of(picture: U8, most: int) -> tuple[int, bytes]:
    """(quality, file) of AVIF within `most` bytes, or its smallest file."""
    found = (1, saved(picture, "AVIF", 1))
    for quality in (5, 10, 15, 20, 25, 30, 40, 50):
        data = saved(picture, "AVIF", quality)
        if len(data) > most:
            break
        found = (quality, data)
    return found


@bench.measure(
    Row(
        "encode",
        "the sensor codes a picture in at most a quarter of AVIF's time (default speed), equal bytes",
        "ms",
        "time",
        Bar("<=", 0.25),
        published="177.8 over 5.5 million pixels a second",
        quick=True,
    ),
    Row(
        "encode-fast",
        "beside AVIF at its fastest (speed 10)",
        "ms",
        "time",
        published="177.8 over 25.73 million pixels a second",
        quick=True,
    ),
    seconds=60,
    quick_seconds=13,
)
def sensor(run: Run) -> Outcomes:
    codec, picture = shipped(), photograph()
    sent = codec.encode(picture)
    quality, file = avif_of(picture, len(sent))
    calls = CALLS["sensor"]
    sides = {
        "sensor": timed(lambda: codec.encode(picture), calls),
        "avif": timed(lambda: saved(picture, "AVIF", quality), 1),
        "avif-fast": timed(lambda: saved(picture, "AVIF", quality, speed=10), 1),
    }
    for call in sides.values():
        call()
    taken = run.interleave(sides, ROUNDS)
    note = f"512 x 512 pixels, {len(sent)} bytes and {len(file)} of AVIF q{quality}"
    return {
        "encode": Outcome.of(taken, ours="sensor", baseline="avif", note=note),
        "encode-fast": Outcome.of(taken, ours="sensor", baseline="avif-fast", note=note),
    }


@bench.measure(
    Row(
        "decode-own",
        "the consumer reads a kept JPEG in at most a tenth of the codec's own decoder's time",
        "ms",
        "time",
        Bar("<=", 0.1),
        published="67.97 over 0.68 million pixels a second",
        quick=True,
    ),
    Row(
        "decode-avif",
        "and 1.5 times as fast as AVIF of the bytes that were sent",
        "ms",
        "time",
        Bar("<=", 1 / 1.5),
        published="67.97 over 19.75 million pixels a second",
        quick=True,
    ),
    Row(
        "decode-jpeg",
        "beside a standard JPEG of as many bytes: what the colours cost",
        "ms",
        "time",
        published="3.5x faster than AVIF",
        quick=True,
    ),
    seconds=60,
    quick_seconds=13,
)
def consumer(run: Run) -> Outcomes:
    codec, picture = shipped(), photograph()
    sent = codec.encode(picture)
    stream = codec.read(sent)
    kept = codec.transcode(sent)
    pair = codec.consumer()
    quality, avif = avif_of(picture, len(sent))
    plain = next(
        (
            data
            for q in range(10, 98, 4)
            if len(data := saved(picture, "JPEG", q, subsampling=0)) >= len(kept)
        ),
        saved(picture, "JPEG", 97, subsampling=0),
    )
    calls = CALLS["consumer"]
    sides = {
        "consumer": timed(lambda: pair.decode(kept), calls),
        "decoder": timed(lambda: codec.rebuild(stream), 1),
        "avif": timed(lambda: opened(avif), calls),
        "jpeg": timed(lambda: opened(plain), calls),
    }
    for call in sides.values():
        call()
    taken = run.interleave(sides, ROUNDS)
    note = f"512 x 512 pixels; kept {len(kept)} bytes, AVIF q{quality} {len(avif)}"
    return {
        "decode-own": Outcome.of(taken, ours="consumer", baseline="decoder", note=note),
        "decode-avif": Outcome.of(taken, ours="consumer", baseline="avif", note=note),
        "decode-jpeg": Outcome.of(taken, ours="consumer", baseline="jpeg", note=f"{len(plain)} bytes"),
    }
