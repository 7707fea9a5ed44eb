"""What a model hears: the spectrogram beside the reference's, other rates, channels, and files that need
more than the light install."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.run.speech import sound

from haversack.core.errors import MissingExtraError, UserError
from haversack.formats.wav import write_wav
from haversack.models.audio._sound import read_sound, sound_files
from haversack.models.audio.log_mel import filters, hertz, log_mel, mel
from haversack.models.audio.resample import resample


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("seconds", [0.4, 3.7, 30.0])
def test_the_spectrogram_is_the_reference_s(bands: int, seconds: float) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is transformers")
    reference = transformers.WhisperFeatureExtractor(feature_size=bands)
    samples = sound(seconds)
    padded = np.pad(samples, (0, 480_000 - len(samples)))
    ours = log_mel(samples, bands, 480_000)
    assert ours.shape == (3000, bands) and ours.dtype == np.float32
    theirs = reference._np_extract_fbank_features([padded], "cpu")[0]
    assert np.abs(ours - theirs.T).max() < 1e-5
    # Its other path transforms in single precision, which shows where a band is nearly silent.
    single = reference(samples, sampling_rate=16000, return_tensors="np").input_features[0]
    assert np.abs(ours - single.T).max() < 1e-3 and np.abs(ours - single.T).mean() < 1e-6


def test_mel_is_slaney_s() -> None:
    assert np.allclose(mel(np.array([0.0, 500.0, 1000.0, 6400.0])), [0, 7.5, 15, 42])
    values = np.linspace(0, 8000, 50)
    assert np.allclose(hertz(mel(values)), values)
    assert (filters(80) >= 0).all() and (filters(80).sum(axis=1) > 0).all()


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_another_rate_keeps_what_is_heard(rate: int) -> None:
    """Tones below both cut-offs come out as they are; those above do not come out at all."""
    at = np.arange(rate) / rate
    for hertz_ in (100.0, 1234.0, 3000.0):
        found = resample(np.sin(2 * np.pi * hertz_ * at).astype(np.float32), rate, 16000)
        assert len(found) == 16000
        wanted = np.sin(2 * np.pi * hertz_ * np.arange(16000) / 16000)
        assert np.abs(found - wanted)[400:-400].max() < 2e-4
    if rate > 20000:
        above = resample(np.sin(2 * np.pi * 9000.0 * at).astype(np.float32), rate, 16000)
        assert np.abs(above)[400:-400].max() < 2e-4


@pytest.mark.parametrize("count", [1, 5, 63, 64, 1000])
def test_the_shortest_sounds(count: int) -> None:
    for rate in (8000, 16001, 44100):
        assert len(resample(np.ones(count, np.float32), rate, 16000)) == -(-count * 16000 // rate)


def test_what_was_done_is_said(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", sound(0.5, rate=8000), 8000)
    heard = read_sound(tmp_path / "a.wav")
    assert heard.notes == ("8000 samples a second were resampled to 16000",) and heard.seconds == 0.5
    write_wav(tmp_path / "b.wav", sound(0.5), 16000)
    assert read_sound(tmp_path / "b.wav").notes == ()


def test_channels_are_averaged_and_it_is_said(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="FLAC needs soundfile")
    left, right = sound(0.5, 1), sound(0.5, 2)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 16000)
        heard = read_sound(tmp_path / name)
        assert heard.notes == ("2 channels were averaged",)
        assert np.abs(heard.samples - (left + right) / 2).max() < 2**-14


def test_a_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(100))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'haversack\[audio\]'"):
        read_sound(tmp_path / "a.flac")


def test_folders_of_sound(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("2.wav", "b/1.WAV", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in sound_files(tmp_path, "calibration")] == ["2.wav", "1.WAV"]
    for empty in (tmp_path / "none", tmp_path / "b" / "c"):
        with pytest.raises(UserError) as caught:
            sound_files(empty, "calibration")
        assert caught.value.field == "calibration"
