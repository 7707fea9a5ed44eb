"""FeatureDB ECG: the golden case of the public program, exact formulas, known truth, streams, bad
recordings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from haversack.bench.featuredb_ecg.synthetic import synthetic
from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.errors import UserError
from haversack.sense import EcgStream, hrv, read_ecg
from haversack.sense._ecg_beat import SCALES, Rules, delineate, rate_and_degree, spline_wavelet
from haversack.sense._ecg_checks import checked, clipped_share, flat_share
from haversack.sense._ecg_features import corrected_qt, electrical_axis, qrs_form
from haversack.sense._ecg_fixed import cleaned, fixed_peaks
from haversack.sense._ecg_signal import gradient_peaks, histogram_scaled, less_moving_mean, resampled

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def heart() -> np.ndarray:
    return synthetic(160, 400, 70, snr_db=30, seed=1)


def test_the_public_programs_example_to_the_unit(data: Callable[[str], Path]) -> None:
    """What running the public program on its own example gave (specification 03, golden case)."""
    text = data("ecg/featuredb_example.txt").read_text()
    samples = np.array(json.loads(text), np.float64)
    assert len(samples) == 3750
    found = read_ecg(samples, 125, profile="published")
    assert len(found.peaks) == 35 and found.peaks[:5].tolist() == [313, 747, 1165, 1609, 2048]
    assert (found.r, len(found.beat)) == (148, 486) and found.value("rr_ms") == 422
    at = {name: value // 4 for name, value in vars(found.bounds).items() if isinstance(value, int)}
    assert (at["p_on"], at["p"], at["p_off"]) == (64, 76, 96)
    assert (at["q"], at["qrs_on"], at["qrs_off"], at["s"]) == (132, 127, 167, 159)
    assert (at["t_on"], at["t"], at["t_off"]) == (283, 291, 308)
    times = {name: figure.value for name, figure in found.figures.items()}
    assert times == {
        "pr_ms": 126, "qrs_ms": 80, "qt_ms": 282, "p_ms": 64, "st_ms": 232, "rr_ms": 422, "rate_bpm": 142,
        "qtc_ms": 434,
    }  # fmt: skip
    assert found.forms["r"] == pytest.approx(0.76, abs=5e-3)
    assert found.forms["p"] == pytest.approx(0.040, abs=4e-3)


@pytest.mark.parametrize(
    ("formula", "wanted"),
    [("bazett", 500.0), ("fridericia", 464.2), ("framingham", 455.4), ("hodges", 459.1)],
)
def test_corrected_qt(formula: str, wanted: float) -> None:
    assert corrected_qt(400, 0.64, formula) == pytest.approx(wanted, abs=0.06)
    assert corrected_qt(400, 1.0, formula) == pytest.approx(400)


def test_the_axis() -> None:
    assert electrical_axis(1.0, 0.0) == (30.0, "normal")
    assert electrical_axis(1.0, -1.5)[1] == "left"
    assert electrical_axis(-1.0, 1.5)[1] == "right"


def test_the_wavelet_of_a_constant_is_zero_away_from_the_ends() -> None:
    for scale, w in enumerate(spline_wavelet(np.ones(6000))):
        reach = 4 << scale
        assert np.abs(w[reach:-reach]).max() < 1e-12


def test_the_degree_follows_the_rate_and_published_indices_wrap() -> None:
    assert [rate_and_degree(int(60 / rate * 2000))[1] for rate in (240, 120, 60, 30)] == [1, 2, 3, 4]
    beat = np.exp(-0.5 * ((np.arange(240) - 90) / 8.0) ** 2)
    for rules in (Rules(), Rules(wrap=False, t_onset_from_p=False)):
        found = delineate(beat, 90, rules)
        assert found.qrs_on is not None and found.qrs_off is not None
        assert found.qrs_on < 90 * 4 < found.qrs_off
    assert SCALES == 9


def test_small_steps() -> None:
    x = np.arange(10.0)
    assert np.allclose(resampled(x, 19), np.arange(0, 9.5, 0.5))
    assert np.allclose(less_moving_mean(x)[3:-3], 0) and less_moving_mean(x)[0] == -1.5
    scaled = histogram_scaled(np.random.default_rng(0).standard_normal(5000) * 7)
    assert 0.15 < scaled.std() < 0.3
    assert len(gradient_peaks(np.zeros(1000))) == 0


@pytest.mark.parametrize(
    ("pr", "qt", "rate"), [(120, 360, 60), (200, 400, 75), (160, 440, 50), (140, 320, 100)]
)
def test_known_truth_is_measured(pr: float, qt: float, rate: float) -> None:
    found = read_ecg(synthetic(pr, qt, rate, snr_db=30, seed=3), 500)
    assert found.value("rate_bpm") == pytest.approx(rate, rel=0.01)
    assert found.value("pr_ms") == pytest.approx(pr, abs=25)
    assert found.value("qt_ms") == pytest.approx(qt, abs=25)
    assert found.quality > 0.9


def test_a_longer_interval_is_measured_longer() -> None:
    prs = [
        read_ecg(synthetic(pr, 400, 60, snr_db=30, seed=5), 500).value("pr_ms") for pr in (120, 180, 240, 300)
    ]
    qts = [
        read_ecg(synthetic(160, qt, 60, snr_db=30, seed=5), 500).value("qt_ms") for qt in (320, 380, 440, 500)
    ]
    for found, true in ((prs, (120, 180, 240, 300)), (qts, (320, 380, 440, 500))):
        slope = np.polyfit(true, np.array(found, float), 1)[0]
        assert 0.9 < slope < 1.1


def test_the_rate_of_the_file_does_not_matter(heart: np.ndarray) -> None:
    slow, fast = read_ecg(heart[::2], 250), read_ecg(heart, 500)
    for name in ("pr_ms", "qrs_ms", "qt_ms"):
        assert slow.value(name) == pytest.approx(fast.value(name), abs=8)


def test_alarms_state_where_they_are_raised() -> None:
    long = read_ecg(synthetic(260, 520, 55, snr_db=30, seed=2), 500)
    assert [alarm.raised for alarm in long.alarms] == [True, True]
    assert all(f"above {alarm.cut_ms:g} ms" in alarm.operating_point for alarm in long.alarms)
    short = read_ecg(synthetic(140, 360, 60, snr_db=30, seed=2), 500)
    assert [alarm.raised for alarm in short.alarms] == [False, False]


def test_an_irregular_rhythm_has_no_pr() -> None:
    random = np.random.default_rng(0)
    parts = [
        synthetic(160, 330, rate, snr_db=40, seed=at, seconds=60 / rate)
        for at, rate in enumerate(random.uniform(55, 120, 12))
    ]
    found = read_ecg(np.concatenate(parts), 500)
    assert found.value("pr_ms") is None and "irregular" in found.figures["pr_ms"].reason
    assert found.alarms[0].raised is None


def test_a_stream_says_what_the_whole_says(heart: np.ndarray) -> None:
    signal = np.concatenate([heart, synthetic(200, 380, 80, snr_db=30, seed=9)])
    stream = EcgStream(500)
    assert stream.nbytes <= 64 * 1024
    seen = 0
    for start in range(0, len(signal), 137):
        found = stream.push(signal[start : start + 137])
        if found is None:
            continue
        seen += 1
        end = min(start + 137, len(signal))
        whole = read_ecg(signal[max(0, end - 5000) : end], 500)
        for name in ("pr_ms", "qrs_ms", "qt_ms", "rr_ms"):
            ours, theirs = found.value(name), whole.value(name)
            assert (ours is None) == (theirs is None)
            assert ours is None or abs(ours - theirs) <= 2
    assert seen >= 12


def test_late_and_missing_samples_of_a_stream(heart: np.ndarray) -> None:
    stream = EcgStream(500)
    stream.push(heart[:1000], at=0)
    stream.push(heart[500:1200], at=500)  # 500 samples come a second time
    assert (stream.seen, stream.late, stream.lost) == (1200, 500, 0)
    assert np.allclose(stream.window(), heart[:1200], atol=1e-6)
    stream.push(heart[2000:2100], at=2000)  # 800 never came: the window begins anew
    assert (stream.seen, stream.lost) == (2100, 800) and len(stream.window()) == 100
    assert stream.reading() is None and "at least 2 s" in stream.reason
    with pytest.raises(UserError, match="allowed 100 to"):
        EcgStream(5000)


def test_a_lead_that_comes_off_and_on_again(heart: np.ndarray) -> None:
    """No reading while more than a fifth of the window is flat; the next whole window reads as before."""
    stream = EcgStream(500)
    off = np.full(3000, heart[-1])
    signal = np.concatenate([heart, off, heart])
    said: list[tuple[int, bool]] = []
    for start in range(0, len(signal), 250):
        made = stream.push(signal[start : start + 250])
        if made is not None or "flat" in stream.reason:
            said.append((start + 250, made is not None))
    on, back = len(heart), len(heart) + len(off)
    assert all(read for at, read in said if at <= on + 500)
    assert not any(read for at, read in said if on + 1250 < at <= back + 1000)
    assert all(read for at, read in said if at > back + 4000) and said[-1][0] > back + 4000
    last = stream.reading()
    assert last is not None
    for name in ("pr_ms", "qt_ms"):
        assert last.value(name) == pytest.approx(read_ecg(heart[-5000:], 500).value(name), abs=4)


def noisy(kind: str, x: np.ndarray) -> np.ndarray:
    x = x.copy()
    if kind == "flat":
        x[:1500] = 0.25
    elif kind == "off":
        x[:] = 0.0
    elif kind == "saturated":
        x = np.clip(x, -0.05, 0.05)
    elif kind == "nan":
        x[700] = np.nan
    elif kind == "short":
        x = x[:800]
    elif kind == "noise":
        x = x[:1100]
    return x


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("flat", r"% of the lead is flat"),
        ("off", "the lead is off"),
        ("saturated", "clipped"),
        ("nan", "first at 1.40 s"),
        ("short", "lasts 1.6 s"),
        ("noise", "heart beats were found, at least 4"),
    ],
)
@pytest.mark.parametrize("profile", ["fixed", "published"])
def test_bad_leads_are_refused(kind: str, said: str, profile: str, heart: np.ndarray) -> None:
    with pytest.raises(UserError, match=said):
        read_ecg(noisy(kind, heart), 500, profile=profile)


def test_units_that_cannot_be(heart: np.ndarray) -> None:
    with pytest.raises(UserError, match="perhaps counts"):
        read_ecg(heart * 1000, 500, units="mV")
    in_uv = read_ecg(heart * 1000, 500, units="uV")
    assert in_uv.unit == "mV" and in_uv.forms["r"] == pytest.approx(1.0, abs=0.15)
    assert read_ecg(heart, 500).unit == "relative"
    with pytest.raises(UserError, match="units=mm"):
        read_ecg(heart, 500, units="mm")


def test_a_wrong_rate_is_noticed(heart: np.ndarray) -> None:
    with pytest.raises(UserError, match="too low for an ECG"):
        read_ecg(heart, 50)
    slow = read_ecg(heart, 125)
    assert any("check the sampling rate" in warning for warning in slow.warnings)


def test_shares_of_flat_and_clipped() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    assert flat_share(x, 100) == 0 and clipped_share(x) == 0
    x[100:400] = x[100]
    assert flat_share(x, 100) == pytest.approx(0.3, abs=0.01)
    assert clipped_share(np.clip(x, -1, 1), (-1.0, 1.0)) > 0.1
    assert checked(np.random.default_rng(0).standard_normal(1000), 200).shape == (1000,)


def test_t_waves_are_not_counted() -> None:
    """T as tall as R, at a rate where both lie within the detector's running mean."""
    signal = cleaned(synthetic(160, 400, 60, snr_db=40, seed=4, t_mv=1.1))
    peaks = fixed_peaks(signal)
    assert len(peaks) in (9, 10, 11) and np.abs(np.diff(peaks) - 500).max() < 10


def test_variability() -> None:
    rr = np.array([800.0, 810, 790, 900, 800])
    found = hrv.time_domain(rr)
    steps = np.array([10, -20, 110, -100.0])
    assert found["rmssd_ms"] == pytest.approx(math.sqrt(np.mean(steps**2)))
    assert found["pnn50_percent"] == 50 and found["sdnn_ms"] == pytest.approx(rr.std(ddof=1))
    long = 800 + 40 * np.sin(2 * np.pi * 0.25 * np.arange(200) * 0.8)
    power = hrv.frequency_domain(long)
    assert power["hf_ms2"] > 20 * power["lf_ms2"] and power["hf_ms2"] == pytest.approx(800, rel=0.25)
    noise = np.random.default_rng(0).standard_normal(600)
    assert hrv.fluctuation(noise) == pytest.approx(0.5, abs=0.12)
    assert hrv.fluctuation(np.cumsum(noise)) == pytest.approx(1.5, abs=0.2)
    assert hrv.higuchi(noise) == pytest.approx(2, abs=0.1) and hrv.higuchi(np.arange(200.0)) == pytest.approx(
        1, abs=0.05
    )
    assert hrv.sample_entropy(np.tile([1.0, 2.0], 50)) == pytest.approx(0, abs=0.05)
    one = np.sin(np.linspace(0, 6, 50))
    assert hrv.warped_cost(one, one) == 0 and hrv.warped_cost(one, one + 1) > 10
    figures, reasons = hrv.variability(rr, [])
    assert figures["lf_ms2"] is None and "needs 60 beats" in reasons["lf_ms2"]


def test_forms_of_the_qrs() -> None:
    time = np.arange(40.0)

    def bump(at: float, height: float) -> np.ndarray:
        return height * np.exp(-0.5 * ((time - at) / 2.5) ** 2)

    assert qrs_form(bump(10, -0.2) + bump(20, 1), 0, 39, 0.0)[0] == "qR"
    assert qrs_form(bump(12, 0.3) + bump(22, -1), 0, 39, 0.0)[0] == "rS"
    assert qrs_form(bump(20, -1), 0, 39, 0.0)[0] == "QS"
    assert qrs_form(bump(8, 0.3) + bump(17, -0.8) + bump(28, 1), 0, 39, 0.0)[0] == "rSR'"


def test_the_command(heart: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, plot = tmp_path / "e.csv", tmp_path / "e.svg"
    path.write_text("\n".join(f"{value:.5f}" for value in heart))
    line = ["sense", "ecg", str(path), "--fs", "500"]
    assert main([*line, "--units", "mV", "--plot", str(plot), "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["sense-ecg"])
    found = json.loads(out)
    assert found["figures"]["qt_ms"]["value"] == pytest.approx(400, abs=25)
    assert out.count("medical device") == 1 and found["amplitude_unit"] == "mV"
    assert len(found["beats"]) >= 11 and found["beats"][5]["qt_ms"] is not None
    assert ElementTree.fromstring(plot.read_text()).tag.endswith("svg")
    assert main([*line, "--stream", "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["sense-ecg"])
    streamed = json.loads(out)
    assert len(streamed["updates"]) >= 6
    assert streamed["figures"]["qt_ms"]["value"] == pytest.approx(found["figures"]["qt_ms"]["value"], abs=2)
    assert main([*line, "--profile", "published"]) == 0
    out = capsys.readouterr().out
    assert "not raised" in out and out.count("medical device") == 1


@pytest.mark.parametrize(
    ("more", "field", "said"),
    [
        ([], "fs", "add --fs"),
        (["--fs", "500", "--profile", "best"], "profile", "profile=best"),
        (["--fs", "500", "--qtc", "bazet"], "qtc", "use qtc=bazett"),
        (["--fs", "500", "--lead", "V9"], "lead", "V9"),
        (["--fs", "500", "--units", "counts"], "units", "units=counts"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    heart: np.ndarray,
    more: list[str],
    field: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "e.csv").write_text("\n".join(f"{value:.5f}" for value in heart))
    assert main(["sense", "ecg", str(tmp_path / "e.csv"), *more, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert said in error["error"] and error["field"] == field
