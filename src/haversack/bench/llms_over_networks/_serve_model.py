"""A trained model of the bench as an OpenAI-compatible process: `python _serve_model.py device|cloud`. Prints
its address, serves until its standard input ends."""

from __future__ import annotations

import re
import sys

from haversack.bench.llms_over_networks import _models as toys
from haversack.core._service import Limits, Request, Response, Service


def main(which: str) -> None:
    """Serve a list model."""
    model = toys.list_model(which)

    def chat(request: Request) -> Response:
        body = request.json()
        question = re.search(r"What is the \w+ of [\d ]+\?", body["messages"][-1]["content"])
        if question is None:
            return Response.of({"error": {"message": "no question"}}, 400)
        row = toys.probabilities(model, toys.list_features([question[0]]))[0]
        text, chance = toys.drawn(row, body.get("seed") or 0, question[0])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        if body.get("logprobs"):
            import math

            choice["logprobs"] = {"content": [{"token": text, "logprob": math.log(max(chance, 1e-9))}]}
        usage = {"prompt_tokens": len(question[0]) // 4, "completion_tokens": 1}
        return Response.of({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    service = Service(
        {
            ("GET", "/v1/models"): lambda request: Response.of({"data": [{"id": which}]}),
            ("POST", "/v1/chat/completions"): chat,
        },
        limits=Limits(per_second=10_000, burst=10_000),
    )
    service.start()
    print(service.url, flush=True)
    sys.stdin.read()
    service.stop(1.0)


if __name__ == "__main__":
    main(sys.argv[1])
