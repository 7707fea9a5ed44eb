"""The bench of CURA, a reconstruction: how many numbers it needs beside networks that are grown until they do
as well.

functions.py: five targets, ratios of numbers against grown MLPs, ablations. tables.py: real tables, where a
linear map is as good. forecasts.py: beside LSTM and DLinear. device.py: the C file."""

from __future__ import annotations

from haversack.bench.cura import device, forecasts, functions, tables
from haversack.bench.cura._bench import bench

__all__ = ["bench", "device", "forecasts", "functions", "tables"]
