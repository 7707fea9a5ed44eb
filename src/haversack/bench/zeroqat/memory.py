"""Peak memory of training in few bits, weighed from outside: a fresh process for each way, the same texts.

Two models in W4A4: `code`, and a random Llama of 28 M weights whose weights outweigh the program. The light
variant begins from a pack that was prepared before, as on a device; reading is the engine's, on the pack that
the light variant wrote.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.zeroqat._bench import bench
from haversack.core.memory import drop_cached, run_measured

BATCH, LENGTH = 16, 128
TIMEOUT = 300.0


def peak(way: str, pack: Path, rows: int, goal: Path | None = None) -> float:
    """MiB. Raises Unavailable where the process fails."""
    weights = pack / "weights.safetensors"
    drop_cached([weights])
    argv: list[str | Path] = [
        sys.executable,
        "-m",
        "haversack.bench.zeroqat._worker",
        way,
        pack,
        str(rows),
        str(LENGTH),
    ]
    done = run_measured([*argv, *([goal] if goal else [])], files=[weights], timeout=TIMEOUT)
    if done.returncode:
        raise Unavailable(f"{way} failed: {done.stderr.strip()[-300:]}")
    return done.peak_mib


def prepared_model(folder: Path, kept: str, goal: Path) -> Path:
    """The model in `folder` in W4A4, smoothed but not fitted: memory does not depend on values."""
    import numpy as np

    from haversack.bench.zeroqat._worker import BITS
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import Bits
    from haversack.train.gradient._zeroqat_prepare import Preparing, prepare

    model = open_model(folder)
    texts = np.random.default_rng(1).integers(0, model.architecture.vocabulary, (2, LENGTH))
    prepare(model, texts.astype(np.int32), Preparing(Bits(*BITS), kept, epochs=0), goal)
    return goal


def models(quick: bool) -> dict[str, Path]:
    """Name -> folder."""
    from haversack.bench.engine._models import code_folder, medium_checkpoint

    found = {"code": code_folder()}
    return found if quick else found | {"medium": medium_checkpoint()[0]}


@bench.measure(
    *[
        Row(
            f"light-{name}",
            f"{title}: training the light variant takes at most 1.3 times the memory of reading the same "
            "texts with the model it makes",
            "MiB",
            "memory",
            Bar("<=", 1.3),
            published="fine-tuning OPT-1.3B in 0.8 GB",
            quick=name == "code",
        )
        for name, title in (("code", "`code`"), ("medium", "28 M weights"))
    ],
    *[
        Row(
            f"light-adam-{name}",
            f"{title}: and at most 0.35 of training with Adam through the rounding",
            "MiB",
            "memory",
            Bar("<=", 0.35),
            published="0.8 of 5.9 GB (OPT-1.3B)",
        )
        for name, title in (("code", "`code`"), ("medium", "28 M weights"))
    ],
    Row(
        "full-batch",
        "28 M weights: 8 texts in place of 1 change the full variant's memory by less than 3 %, states of "
        "texts that pass at once apart",
        "MiB",
        "memory",
        Bar("in", (0.97, 1.03)),
        published="constant in the batch: 3.1 GB (1.3B), 26.6 GB (13B)",
    ),
    seconds=90,
    quick_seconds=15,
)
def peaks(run: Run) -> Outcomes:
    outcomes: dict[str, Outcome | Unavailable] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(run.quick).items():
            run.say(f"memory of {name}")
            place = Path(folder) / name
            place.mkdir()
            light = prepared_model(model, "query-value", place / "light.pack")
            ours = peak("light", light, BATCH, place / "trained.pack")
            read = peak("read", place / "trained.pack", BATCH)
            note = f"{BATCH} texts of {LENGTH} tokens"
            outcomes[f"light-{name}"] = Outcome.single(
                ours, read, name="light training", against="engine reads", note=note
            )
            if run.quick:
                continue
            full = prepared_model(model, "all", place / "full.pack")
            try:
                adam = peak("adam", full, BATCH)
                outcomes[f"light-adam-{name}"] = Outcome.single(
                    ours, adam, name="light training", against="Adam", note=f"{note}; Adam: PyTorch included"
                )
            except Unavailable as error:
                outcomes[f"light-adam-{name}"] = error
            if name == "medium":
                outcomes["full-batch"] = _batch(full)
    return outcomes


def _batch(pack: Path) -> Outcome:
    from haversack.run._source import open_model
    from haversack.train.gradient._zeroqat_decoder import TOKENS

    width = open_model(pack).architecture.width
    state = 4 * LENGTH * width / 2**20
    together = min(8, TOKENS // LENGTH)
    one, eight = peak("full", pack, 1), peak("full", pack, 8)
    note = f"peaks {one:.1f} and {eight:.1f} MiB, of which the states of a text are {state:.2f}"
    return Outcome.single(eight - together * state, one - state, name="8 texts", against="1 text", note=note)
