"""Query routers on recorded answers of two large models (RouteLLM): learned on one half, replayed on the
other, over random halves; prompt length alone beside them in the same row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.llms_over_networks._bench import ROUTERS, bench
from haversack.core._datasets import local_path
from haversack.share._outcomes import read_outcomes
from haversack.share.learning_routers import Seen, by_subject, halves

WATCHED = (*ROUTERS, "bench/llms_over_networks/outcomes.py", "share/_outcomes.py")
SHARE = 0.4
HALVES = 20
FORMS = ("similarity-ranking", "classifier", "matrix-factorisation")


def gsm8k() -> Seen:
    """The outcomes. Raises Unavailable without them."""
    path = local_path("routellm-gsm8k")
    if path is None:
        raise Unavailable("routing/gsm8k_responses.csv of RouteLLM is not here (see docs/data.md)")
    return Seen.of(read_outcomes([path]))


def mmlu_files() -> list[Path]:
    """The files mmlu_SUBJECT.csv of the user's data folder. Raises Unavailable without them."""
    folder = Path(os.environ.get("HAVERSACK_DATA", "")) / "routing" / "mmlu"
    files = sorted(folder.glob("mmlu_*.csv")) if os.environ.get("HAVERSACK_DATA") else []
    if len(files) < 2:
        raise Unavailable(
            "RouteLLM's MMLU outcomes are not here: put its files mmlu_SUBJECT.csv into routing/mmlu of the "
            "folder that HAVERSACK_DATA names; their reader is tested on files of that form"
        )
    return files


def _rows_of(form: str, quick: bool) -> tuple[Row, ...]:
    short = form.split("-")[0]
    return (
        Row(
            f"gsm8k-gap-{short}",
            f"part of the gap recovered at 40 % strong share by {form}, beside prompt length alone",
            "part of the gap",
            "quality",
            Bar(">=", 0.50),
            judged="ours",
            published="reference code: .37 (.721 against .711 of random at 40 %)",
            quick=quick,
        ),
        Row(
            f"gsm8k-over-length-{short}",
            f"what {form} recovers beyond prompt length",
            "part of the gap",
            "quality",
            Bar(">=", 0.03),
            judged="ours",
        ),
    )


def _measured(form: str, run: Run) -> Outcomes:
    seeds = [run.seed % 1000] if run.quick else range(HALVES)
    found = halves(form, gsm8k(), SHARE, list(seeds), run.say)
    ours = [one["recovered"] for one in found]
    lengths = [one["recovered_length"] for one in found]
    share = float(np.mean([one["share_by_threshold"] for one in found]))
    area = float(np.mean([one["area_of_oracle"] for one in found]))
    short = form.split("-")[0]
    mean = (
        f"mean {np.mean(ours):.3f} against {np.mean(lengths):.3f} of prompt length over {len(found)} halves"
    )
    note = f"{mean}; its calibrated threshold sends {share:.3f}; {area:.2f} of the oracle's area"
    return {
        f"gsm8k-gap-{short}": Outcome(
            Side(form, (float(np.mean(ours)),)), Side("prompt length", (float(np.mean(lengths)),)), note
        ),
        f"gsm8k-over-length-{short}": Outcome(
            Side(form, (float(np.mean(ours) - np.mean(lengths)),)), None, mean
        ),
    }


@bench.measure(*_rows_of(FORMS[0], True), seconds=240, quick_seconds=20, watches=WATCHED)
def ranking(run: Run) -> Outcomes:
    """The similarity-weighted ranking."""
    return _measured(FORMS[0], run)


@bench.measure(*_rows_of(FORMS[1], False), seconds=180, watches=WATCHED)
def classifier(run: Run) -> Outcomes:
    """The classifier."""
    return _measured(FORMS[1], run)


@bench.measure(*_rows_of(FORMS[2], False), seconds=300, watches=WATCHED)
def factorisation(run: Run) -> Outcomes:
    """The matrix factorisation."""
    return _measured(FORMS[2], run)


@bench.measure(
    Row(
        "mmlu-gap",
        "part of the gap on MMLU recovered at 40 % strong share, random half",
        "part of the gap",
        "quality",
        Bar(">=", 0.55),
        judged="ours",
        published="reference: .57",
    ),
    Row(
        "mmlu-gap-subjects",
        "the same on subjects that the training half does not have",
        "part of the gap",
        "quality",
        judged="ours",
    ),
    seconds=60,
    watches=WATCHED,
)
def mmlu(run: Run) -> Outcomes:
    """MMLU, where its outcomes are."""
    seen = Seen.of(read_outcomes(mmlu_files()))
    half = halves("classifier", seen, SHARE, [0], run.say)[0]
    held = by_subject("classifier", seen, SHARE, (0, 1, 2))
    return {
        "mmlu-gap": Outcome.single(half["recovered"], half["recovered_length"], against="prompt length"),
        "mmlu-gap-subjects": Outcome.single(float(np.mean([one["recovered"] for one in held]))),
    }
