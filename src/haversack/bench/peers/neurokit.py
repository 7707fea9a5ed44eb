"""NeuroKit2 on one lead: its own cleaning, its own peaks, its wavelet delineator; medians over beats."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from haversack.bench._rows import Unavailable


def neurokit() -> Any:
    """The package. Raises Unavailable where it is not installed."""
    try:
        import neurokit2
    except ImportError:
        raise Unavailable("NeuroKit2 is not installed; run: pip install neurokit2") from None
    return neurokit2


def measure(samples: Any, rate: float) -> dict[str, float]:
    """PR, QRS, QT and RR in ms; nan for what it does not find."""
    nk = neurokit()
    nothing = dict.fromkeys(("pr", "qrs", "qt", "rr"), float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            clean = nk.ecg_clean(samples, sampling_rate=int(rate))
            _, found = nk.ecg_peaks(clean, sampling_rate=int(rate))
            peaks = found["ECG_R_Peaks"]
            _, waves = nk.ecg_delineate(clean, peaks, sampling_rate=int(rate), method="dwt")
        except Exception as error:  # whatever it stumbles on is a record that it does not measure
            del error
            return nothing

        def between(start: str, end: str) -> float:
            pairs = [
                (last - first) * 1000 / rate
                for first, last in zip(waves[start], waves[end], strict=False)
                if first is not None and last is not None and np.isfinite(first) and np.isfinite(last)
            ]
            return float(np.median(pairs)) if pairs else float("nan")

        return {
            "pr": between("ECG_P_Onsets", "ECG_R_Onsets"),
            "qrs": between("ECG_R_Onsets", "ECG_R_Offsets"),
            "qt": between("ECG_R_Onsets", "ECG_T_Offsets"),
            "rr": float(np.median(np.diff(peaks))) * 1000 / rate if len(peaks) > 1 else float("nan"),
        }
