"""The bench of Edge-ASR: eight precision methods on two small Whispers that write down spoken digits.

errors.py: word error rates of methods and settings, and the bars over them. costs.py: bit operations, bytes
stored and moved. diagnostics.py: where a method goes wrong. spelling.py: real speech weights.
"""

from __future__ import annotations

from haversack.bench.edge_asr import costs, diagnostics, errors, spelling
from haversack.bench.edge_asr._bench import bench

__all__ = ["bench", "costs", "diagnostics", "errors", "spelling"]
