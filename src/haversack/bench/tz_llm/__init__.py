"""The bench of TZ-LLM: sealed weights restored beside the computation, and the co-driver against a lying
world.

latency.py: first tokens of a model of 280 MB at 8 bits on storage held to 400 MB/s, beside the unpipelined
one, the same model in the clear, and what is left when order or grain are taken away. exactness.py: the
same logits, the memory of a run, the size of a store. boards.py: the paper's models and board, simulated.
co_driver.py: 10,000 interleavings.
"""

from __future__ import annotations

from haversack.bench.tz_llm import boards, co_driver, exactness, latency
from haversack.bench.tz_llm._bench import bench

__all__ = ["bench", "boards", "co_driver", "exactness", "latency"]
