"""The shipped codec on photographs that it did not learn from: decibels of its colours and tables beside
standard ones at equal real bytes, counted bits beside real ones, prefixes of codes, files that open."""

from __future__ import annotations

import io

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.seaotter._bench import U8, bench, decibels, opened, saved, shipped, unseen
from haversack.formats.tabled_jpeg import read_jpeg, scan_nbytes, write_jpeg
from haversack.share.seaotter import proxy_bpp

CALIBRATION, SIDE = 16, 256
QUALITIES = tuple(range(10, 100, 3))


def standard_curve(picture: U8, subsampling: int) -> tuple[list[float], list[float]]:
    """(logarithms of bytes, decibels) of standard tables over qualities, whole files."""
    files = [saved(picture, "JPEG", quality, subsampling=subsampling) for quality in QUALITIES]
    return [float(np.log(len(one))) for one in files], [decibels(picture, opened(one)) for one in files]


@bench.measure(
    *[
        Row(
            f"sandwich-{number}",
            f"tables {number} of the shipped codec: decibels over standard tables (4:4:4), equal real bytes, "
            "where they take 1 bit a pixel or more",
            "dB",
            "quality",
            Bar(">=", 0.3) if number > 1 else None,
            "ours",
            "+0.27, +1.40, +1.27 dB at 1.10, 1.91, 2.97 bits a pixel (Kodak)",
            quick=number == 2,
        )
        for number in (1, 2, 3)
    ],
    Row(
        "sandwich-420",
        "tables 2 over standard tables at 4:2:0, equal real bytes",
        "dB",
        "quality",
        None,
        "ours",
    ),
    seconds=60,
    quick_seconds=10,
)
def tables(run: Run) -> Outcomes:
    codec = shipped()
    pictures = unseen()[:2] if run.quick else unseen()
    gains: dict[str, list[float]] = {}
    rates: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for whole in pictures:
        picture = np.ascontiguousarray(whole[:512, :512])
        curve, half = standard_curve(picture, 0), standard_curve(picture, 2)
        planes = codec.pair.to_planes(picture)
        for number in (1, 2, 3):
            data = write_jpeg(planes, codec.tables[number - 1], codec.pair.id)
            found = decibels(picture, codec.consumer().decode(data))
            rate = 8 * len(data) / (picture.shape[0] * picture.shape[1])
            rates[number].append(rate)
            if rate >= 1 or number == 1:
                at = float(np.log(len(data)))
                gains.setdefault(f"sandwich-{number}", []).append(found - float(np.interp(at, *curve)))
                if number == 2:
                    gains.setdefault("sandwich-420", []).append(found - float(np.interp(at, *half)))
    out: dict[str, Outcome | Unavailable] = {}
    for name in ("sandwich-1", "sandwich-2", "sandwich-3", "sandwich-420"):
        values = gains.get(name)
        if not values:
            out[name] = Unavailable("no photograph takes 1 bit a pixel with these tables")
            continue
        number = 2 if name == "sandwich-420" else int(name[-1])
        shown = ", ".join(f"{value:+.2f}" for value in values)
        said = f"mean of {len(values)} photographs: {shown}; {np.mean(rates[number]):.2f} bits a pixel"
        out[name] = Outcome.single(float(np.mean(values)), note=said)
    return out


@bench.measure(
    Row(
        "proxy-correlation",
        "bits as training counts them and bits of real files, over pictures and tables",
        "correlation",
        "quality",
        Bar(">=", 0.98),
        "ours",
        quick=True,
    ),
    Row(
        "proxy-error",
        "mean error of counted bits, calibrated on sixteen other pictures after the codec",
        "share",
        "quality",
        Bar("<=", 0.05),
        "ours",
    ),
    seconds=60,
    quick_seconds=10,
)
def proxy(run: Run) -> Outcomes:
    codec = shipped()
    rng = np.random.default_rng(run.seed)
    real, counted = [], []
    for whole in unseen():
        for _ in range(3 if run.quick else 8):
            top, left = (int(rng.integers(max(1, side - SIDE + 1))) for side in whole.shape[:2])
            crop = np.ascontiguousarray(whole[top : top + SIDE, left : left + SIDE])
            rebuilt = codec.rebuild(codec.read(codec.encode(crop)))
            planes = codec.pair.to_planes(rebuilt)
            for table in codec.tables:
                data = write_jpeg(planes, table, codec.pair.id)
                real.append(8 * scan_nbytes(data) / (planes.shape[0] * planes.shape[1]))
                counted.append(proxy_bpp(planes, table))
    order = rng.permutation(len(real))
    measured, guessed = np.array(real)[order], np.array(counted)[order]
    alpha = float(measured[:CALIBRATION].mean() / guessed[:CALIBRATION].mean())
    measured, guessed = measured[CALIBRATION:], alpha * guessed[CALIBRATION:]
    relative = float(np.mean(np.abs(guessed - measured) / measured))
    total = abs(float(guessed.mean() / measured.mean()) - 1)
    note = f"{len(measured)} files; of the mean over all files {100 * total:.1f} %"
    return {
        "proxy-correlation": Outcome.single(float(np.corrcoef(guessed, measured)[0, 1]), note=note),
        "proxy-error": Outcome.single(relative, note=note),
    }


@bench.measure(
    Row(
        "prefix",
        "the code of n channels is the first n of a longer one, number for number",
        "share of pictures and lengths",
        "quality",
        Bar("==", 1.0),
        "ours",
        quick=True,
    ),
    Row(
        "opens",
        "transcoded files open in Pillow at their size, tables as learned",
        "share of files",
        "quality",
        Bar("==", 1.0),
        "ours",
        quick=True,
    ),
    Row(
        "sent",
        "bits a pixel of twelve channels over those of AVIF's lowest quality",
        "bits a pixel",
        "bytes",
        published="0.109 over 0.146",
        quick=True,
    ),
    seconds=20,
    quick_seconds=10,
)
def codes(run: Run) -> Outcomes:
    from PIL import Image

    codec = shipped()
    equal, fine = [], []
    ours, avif = [], []
    for number, whole in enumerate(unseen()):
        picture = np.ascontiguousarray(whole[: 400 - 13 * number, : 380 + 7 * number])
        longest = codec.read(codec.encode(picture))
        for length in range(1, longest.channels + 1):
            short = codec.read(codec.encode(picture, length))
            pairs = zip(short.maps, longest.first(length).maps, strict=True)
            equal.append(all(np.array_equal(one, other) for one, other in pairs))
        sent = codec.encode(picture)
        for table in range(1, len(codec.tables) + 1):
            data = codec.transcode(sent, table=table)
            with Image.open(io.BytesIO(data)) as file:
                file.load()
                size = file.size == (picture.shape[1], picture.shape[0])
            stored = read_jpeg(data)
            own = np.array_equal(stored.tables.reshape(3, 8, 8), codec.tables[table - 1])
            fine.append(size and own and stored.pair == codec.pair.id)
        pixels = picture.shape[0] * picture.shape[1]
        ours.append(8 * len(sent) / pixels)
        try:
            avif.append(8 * len(saved(picture, "AVIF", 1)) / pixels)
        except Unavailable:
            avif.clear()
    return {
        "prefix": Outcome.single(float(np.mean(equal)), note=f"{len(equal)} codes"),
        "opens": Outcome.single(float(np.mean(fine)), note=f"{len(fine)} files"),
        "sent": Outcome.single(
            float(np.mean(ours)), float(np.mean(avif)) if avif else None, against="AVIF q1, whole files"
        ),
    }


@bench.measure(
    Row(
        "kodak",
        "decibels over standard tables on Kodak's photographs",
        "dB",
        "quality",
        Bar(">=", 0.3),
        "ours",
        "+0.27, +1.40, +1.27 dB",
    ),
    seconds=1,
)
def real_photographs(run: Run) -> Outcomes:
    return {"kodak": Unavailable("Kodak's photographs are not at hand")}
