"""The bench object that the files of this folder add their rows to."""

from __future__ import annotations

from haversack.bench._harness import Bench
from haversack.bench.engine._bench import ENGINE_FILES

_SERVER = (
    *("answers", "app", "asks", "door", "encoding", "errors", "family", "http", "life", "requests"),
    *("room", "telemetry", "tools", "waiting", "writer"),
)
SERVER_FILES = ("core/_asgi.py", "share/serve.py", *(f"share/_{name}.py" for name in _SERVER))
"""What answers, of the room's files."""
SERVING_FILES = (
    *ENGINE_FILES,
    *SERVER_FILES,
    *("bench/serving/*.py", "cli/serve.py"),
    *("run/_batch.py", "run/_jobs.py", "run/_pool.py", "run/_prefix_store.py", "run/_answers.py"),
)

bench = Bench("serving", watches=SERVING_FILES)
