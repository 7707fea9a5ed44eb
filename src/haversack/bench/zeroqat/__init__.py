"""The bench of ZeroQAT: forward passes against rounding, smoothing, block reconstruction and Adam.

perplexity.py: the order of methods at 4-bit weights and inputs, and at 2-bit weights. fine_tuning.py: a table
learned in few bits, beside one learned in floats and rounded after. memory.py: peaks of separate processes.
slopes.py: how good the estimates are, and what a step takes. published.py: figures of 7B models.
"""

from __future__ import annotations

from haversack.bench.zeroqat import fine_tuning, memory, perplexity, published, slopes
from haversack.bench.zeroqat._bench import bench

__all__ = ["bench", "fine_tuning", "memory", "perplexity", "published", "slopes"]
