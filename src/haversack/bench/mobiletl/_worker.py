"""A few steps of one way of learning, in a process of its own, behind JSON lines.

    python -m haversack.bench.mobiletl._worker

Request: train {network, parameters, rows, steps}; the reply has the process's peak.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def train(network: str, parameters: str, rows: int, steps: int) -> dict[str, Any]:
    """Steps of plain SGD on noise; what lies below the learned blocks goes in pieces, as ever."""
    import numpy as np

    from haversack.bench.mobiletl.memory import batch_of, drawn_network
    from haversack.core import index
    from haversack.core.memory import peak_mib
    from haversack.train._slots import Settings

    learner, learned = drawn_network(network, parameters)
    batch = batch_of(np.random.default_rng(0), rows, learner.record.size)
    gradient: Any = index.create("train", "gradient", "backprop")
    stepper = gradient.begin(learner, learned, Settings(steps, rows))
    for _ in range(steps):
        stepper.step(batch, 1e-3)
    return {"peak_mib": peak_mib(), "saved_nbytes": learner.saved_nbytes}


def serve() -> None:
    """Answer one request a line until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        request.pop("do")
        reply: dict[str, Any]
        try:
            reply = train(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
