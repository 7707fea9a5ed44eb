"""Write the trigger's test vectors, which an app in another language replays: streams of evidence, the
average after each sample, and the clips.

`python tools/trigger_vectors.py` writes tests/collect/trigger_vectors.json; `--check` compares.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from haversack.collect.trigger import SECOND, Thresholds, replay

PATH = Path(__file__).resolve().parents[1] / "tests" / "collect" / "trigger_vectors.json"


def streams() -> dict[str, list[tuple[int, float]]]:
    """Samples (t_ns, e) by name: the specification's own, then streams that reach every rule."""
    fifth = SECOND // 5

    def held(*parts: tuple[float, float], step: int = fifth) -> list[tuple[int, float]]:
        values = [e for seconds, e in parts for _ in range(round(seconds * SECOND / step))]
        return [(step * (at + 1), e) for at, e in enumerate(values)]

    draws = random.Random(20260)
    uneven, t = [], 0
    for at in range(1500):
        t += draws.randrange(60_000_000, 700_000_000)
        uneven.append((t, 0.9 if at // 60 % 3 == 1 else draws.random() * 0.4))
    noisy = [
        (fifth * (at + 1), min(1.0, max(0.0, (0.8 if at // 90 % 4 == 2 else 0.1) + draws.gauss(0, 0.15))))
        for at in range(3000)
    ]
    return {
        "specification": held((1.2, 1.0), (8.0, 0.0)),
        "too short to start": held((0.8, 1.0), (6.0, 0.0)),
        "two that become one": held((6.0, 1.0), (4.0, 0.0), (6.0, 1.0), (9.0, 0.0)),
        "two that stay two": held((6.0, 1.0), (7.0, 0.0), (6.0, 1.0), (9.0, 0.0)),
        "split after two minutes": held((100.0, 0.9), (3.0, 0.6), (180.0, 0.95), (9.0, 0.0)),
        "ends while it goes on": held((30.0, 0.8)),
        "two looks a second": held((3.0, 0.0), (12.0, 0.9), (9.0, 0.0), step=SECOND // 2),
        "uneven": uneven,
        "noisy": noisy,
    }


def text() -> str:
    """The file."""
    vectors = []
    for name, samples in streams().items():
        found = replay(samples)
        vectors.append(
            {
                "name": name,
                "samples": [[t, round(e, 6)] for t, e in samples],
                "a": [round(a, 9) for a in replay([(t, round(e, 6)) for t, e in samples])["a"]],
                "clips": replay([(t, round(e, 6)) for t, e in samples])["clips"],
            }
        )
        assert found["clips"] == vectors[-1]["clips"], name
    made = {"thresholds": Thresholds().record(), "tolerance": 1e-6, "vectors": vectors}
    return json.dumps(made, separators=(",", ":")) + "\n"


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        if PATH.is_file() and PATH.read_text(encoding="utf-8") == text():
            return 0
        print("trigger_vectors.json is out of date; run: python tools/trigger_vectors.py", file=sys.stderr)
        return 1
    PATH.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
