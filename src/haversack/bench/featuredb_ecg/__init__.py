"""The bench of FeatureDB ECG: two profiles and NeuroKit2 against cardiologists' marks.

accuracy.py: PR, QRS and QT on LUDB's even records, QTDB where it is at hand. alarms.py: first-degree AV block
and long QT. synthetic.py: ECGs of known truth. speed.py: time, memory, streams. calibration.py: how the fixed
profile's thresholds came out of the odd records."""

from __future__ import annotations

from haversack.bench.featuredb_ecg import accuracy, alarms, calibration, speed, synthetic
from haversack.bench.featuredb_ecg._bench import bench

__all__ = ["accuracy", "alarms", "bench", "calibration", "speed", "synthetic"]
