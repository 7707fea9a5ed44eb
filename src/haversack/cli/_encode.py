"""`haversack run` of an encoder: an embedding, masked words filled in, classes, or a label for each token."""

from __future__ import annotations

import json as library
import time
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError
from haversack.core.pack import TensorSource

_OF_ALL = ("model", "input", "prompt", "json", "top_k", "ram_mib", "residency", "activations", "threads")
_TAKEN = frozenset((*_OF_ALL, "embed", "pair", "lines", "truncate"))
"""Options of `haversack run` that encoders have too."""


def run_encoder(
    source: TensorSource,
    text: str,
    *,
    pair: str | None = None,
    lines: bool = False,
    embed: bool = False,
    truncate: bool = False,
    top: int = 0,
    json: bool = False,
    ram_mib: float | None = None,
    **options: Any,
) -> None:
    """Do with `text` (each of its `lines`) what follows from the model's head and print it."""
    from haversack.core.budget import Budget
    from haversack.run._answers import classify, fill, label, task_of
    from haversack.run._encoder import Encoder

    texts: list[Any] = [line for line in text.splitlines() if line.strip()] if lines else [text.strip("\r\n")]
    if not texts:
        raise UserError("the text is empty; give one that says something.", field="prompt")
    with Encoder.open(source, budget=Budget(ram_mib=ram_mib), **options) as encoder:
        task = "embed" if embed else task_of(encoder)
        if pair is not None:
            if task not in ("classify", "embed"):
                raise UserError(
                    f"--pair is for encoders that classify or embed; this one {task}s.", field="pair"
                )
            texts = [(one, pair) for one in texts]
        tokens = sum(len(one) for one in encoder.tokens(texts, truncate=truncate))
        begun = time.perf_counter()
        found: list[Any]
        if task == "embed":
            found = [{"embedding": row.tolist()} for row in encoder.embed(texts, truncate=truncate)]
        elif task == "fill":
            masks = fill(encoder, texts, top=top or 5, truncate=truncate)
            found = [
                {
                    "masks": [
                        [{"text": c.name, "token": c.token, "score": c.score} for c in one] for one in of_text
                    ]
                }
                for of_text in masks
            ]
        elif task == "classify":
            chosen = classify(encoder, texts, truncate=truncate)
            found = [
                {"classes": [{"label": c.name, "score": c.score} for c in one[: top or None]]}
                for one in chosen
            ]
        else:
            labelled = label(encoder, texts, truncate=truncate)
            found = [
                {"labels": [{"token": one.token, "label": one.label, "score": one.score} for one in of_text]}
                for of_text in labelled
            ]
        seconds = time.perf_counter() - begun
        record = _record(encoder, task, found, tokens, seconds)
    if json:
        from haversack.cli._output import print_json

        print_json(record)
    else:
        _show(record)


def _record(encoder: Any, task: str, found: list[Any], tokens: int, seconds: float) -> dict[str, Any]:
    from haversack.core.measurement import machine
    from haversack.core.memory import peak_mib

    return {
        "task": task,
        "results": found,
        "tokens": tokens,
        "ms": round(1000 * seconds, 3),
        "tokens_per_s": round(tokens / seconds, 3),
        "ram_mib": {
            "planned": round(encoder.memory_plan(tokens).total_mib, 2),
            "measured": round(peak_mib(encoder.model.source.files), 2),
        },
        "plan": encoder.plan,
        "machine": machine(),
    }


def _show(record: dict[str, Any]) -> None:
    """The results, a text a line or a block; then, on standard error, how it went."""
    import sys

    for index, result in enumerate(record["results"]):
        if record["task"] == "embed":
            print(library.dumps(result["embedding"]))
            continue
        if index:
            print()
        for number, mask in enumerate(result.get("masks", ())):
            if number:
                print()
            for choice in mask:
                print(f"{choice['score']:.4f}  {choice['text']}")
        for choice in result.get("classes", ()):
            print(f"{choice['score']:.4f}  {choice['label']}")
        for one in result.get("labels", ()):
            print(f"{one['score']:.4f}  {one['label']}\t{one['token']}")
    plan = ", ".join(f"{name} {value}" for name, value in record["plan"].items())
    memory = record["ram_mib"]
    print(
        f"{record['tokens']} tokens read in {record['ms']:.1f} ms\n"
        f"memory: planned {memory['planned']:.1f} MiB, measured {memory['measured']:.1f} MiB\nplan: {plan}",
        file=sys.stderr,
    )


def refuse_decoder_options() -> None:
    """Raises UserError for an option on the command line that an encoder does not have."""
    from haversack.cli._given_options import refuse_others

    refuse_others(
        _TAKEN,
        "for models that write text; this is an encoder, which takes --embed, --pair, --lines, --truncate "
        "and --top-k.",
    )


def text_or_file(input: Path | str | None) -> str | None:
    """INPUT of an encoder: the text itself unless a file of that name exists (then None)."""
    if input is None or str(input) == "-" or Path(input).is_file():
        return None
    return str(input)
