"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench
from haversack.bench.engine._bench import ENGINE_FILES

SERVING_FILES = (
    *ENGINE_FILES,
    *("bench/serving/*.py", "share/*.py", "cli/serve.py"),
    *("run/_batch.py", "run/_jobs.py", "run/_pool.py", "run/_prefix_store.py", "run/_answers.py"),
)

bench = Bench("serving", watches=SERVING_FILES)
