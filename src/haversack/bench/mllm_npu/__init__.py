"""The bench of mllm-NPU: static int8 with outliers in the shadow, and prompts on two processors.

quality.py: the same logits in chunks, the specification's figures, perplexities beside float. graphs.py: what
is built for twenty prompt lengths. speed.py: schedules on two threads. phone.py: the same schedules with a
phone's times, simulated.
"""

from __future__ import annotations

from haversack.bench.mllm_npu import graphs, phone, quality, speed
from haversack.bench.mllm_npu._bench import bench

__all__ = ["bench", "graphs", "phone", "quality", "speed"]
