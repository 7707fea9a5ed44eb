"""Complete a Python function with the bundled model, token by token as they come.

Run: python examples/complete.py "def read_json(path):"
"""

from __future__ import annotations

import sys

from haversack.core.memory import peak_mib
from haversack.run import Engine, Limits, generate


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "def read_json(path):"
    with Engine.open("code", cache_type="f16") as engine:
        answer = generate(engine, prompt, Limits(max_tokens=40, stop=("\n\n\n",)))
        print(prompt, end="")
        for token in answer:
            print(token.text, end="", flush=True)
        print(f"\n\n{len(answer.tokens)} tokens, ended by {answer.stop}: {answer.tokens_per_s:.0f} tokens/s")
        measured_mib = peak_mib(engine.model.source.files)
        print(engine.memory_plan((answer.prompt_tokens, 40)).text(measured_mib))


if __name__ == "__main__":
    main()
