"""Published int8 networks as C: every code that of the Python graph, under both rounding rules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from haversack.embed.build import build
from haversack.embed.verify import verify

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

MODELS = {
    "models/mlperf-tiny/kws_ref_model.tflite": (2_656_768, 16_000),
    "models/mlperf-tiny/ad01_int8.tflite": (264_192, 768),
    "models/mcu/mcunet-5fps.pkl": (22_613_504, 163_840),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_network_is_computed_to_the_bit(
    name: str, data: Callable[[str], Path], tmp_path: Path
) -> None:
    """The products counted are those of the published architecture; every arena is at its lower bound."""
    found = build(data(name), tmp_path, count=1)
    macs, arena = MODELS[name]
    assert found.made.macs == macs
    assert found.made.plan.nbytes == found.made.plan.bound == arena
    done = verify(tmp_path)
    assert done.holds and all(run.largest == 0 for run in done.runs)
