"""The bench of DHSA: a model that looks records up, dense and sparse, and what a long prompt costs.

quality.py: answers found at a quarter and an eighth of the keys, beside other ways to choose them.
predictor.py: borders predicted and borders by distance. speed.py: a prompt of 8,192 tokens, the length below
which dense attention wins, and the bytes of attention. exact.py: a budget as long as the prompt, and plan and
peak of a run. text.py: the loss of `code` on real text. needles.py: one fact in a long text, asked for at ten
depths. users_model.py: needles and LongBench for a checkpoint of the user's,
measured last, for they take what time is left. The records, the recall model and
its predictor are made here and kept by content.
"""

from __future__ import annotations

from haversack.bench.dhsa import exact, needles, predictor, quality, speed, text, users_model
from haversack.bench.dhsa._bench import bench

__all__ = ["bench", "exact", "needles", "predictor", "quality", "speed", "text", "users_model"]
