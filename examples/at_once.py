"""Eight tokens in one step have the bits of eight steps: what makes verifying drafts exact.

Run: python examples/at_once.py
"""

from __future__ import annotations

import numpy as np

from haversack.run import Engine


def main() -> None:
    with Engine.open("code") as engine:
        tokens = engine.model.tokenizer().encode("for line in open(path):\n    fields = line.split()")[:8]

        cache = engine.cache(16)
        together, _ = engine.step(tokens, cache=cache, want="all")

        cache = engine.cache(16)
        apart = [engine.step([token], cache=cache)[0][0] for token in tokens]

        print(f"{len(tokens)} tokens, {engine.architecture.vocabulary} logits each")
        print("same bits:", np.array_equal(together, np.stack(apart)))


if __name__ == "__main__":
    main()
