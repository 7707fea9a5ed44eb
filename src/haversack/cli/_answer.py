"""A generated answer as it comes, and how it went: in words on standard error, or as one JSON record."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from haversack.cli._output import print_json

if TYPE_CHECKING:
    from haversack.cli._talk import Talk
    from haversack.run._constraint import TokenConstraint
    from haversack.run._generate import Generation


def print_answer(answer: Generation, size: tuple[int, int], text: str, log_probabilities: bool) -> None:
    """The text as it comes; then, on standard error, how it went."""
    told = 0
    for token in answer:
        told = _tell(answer, told)
        if log_probabilities and token.id is not None:
            print(f"{token.log_probability:9.4f}  {token.id:>7}  {token.text!r}", flush=True)
        elif not log_probabilities:
            sys.stdout.write(token.text)
            sys.stdout.flush()
    if not log_probabilities:
        print()
    _tell(answer, told)
    from haversack.core.memory import peak_mib
    from haversack.run._residency import telling

    engine = answer.engine
    planned = engine.memory_plan(size).total_mib
    measured = peak_mib(engine.model.source.files)
    plan = ", ".join(f"{name} {value}" for name, value in engine.plan.items())
    print(
        f"{answer.prompt_tokens} tokens read, {len(answer.tokens)} written ({answer.stop}); first after "
        f"{answer.first_token_ms:.0f} ms, then {answer.tokens_per_s:.1f} tokens/s\n"
        f"memory: planned {planned:.1f} MiB, measured {measured:.1f} MiB\nplan: {plan}",
        file=sys.stderr,
    )
    if engine.tally:
        print(engine.tally.words(), file=sys.stderr)
    if engine.head_predictor is not None:
        print(engine.head_predictor.words(), file=sys.stderr)
    if (held := telling(engine.held)) is not None:
        print(held.words(answer.seconds), file=sys.stderr)
    if answer.drafting is not None:
        print(answer.drafting.words(), file=sys.stderr)
    if engine.reader is not None:
        print(engine.reader.tally.words(), file=sys.stderr)
    if engine.told is not None:
        print(engine.told.words(), file=sys.stderr)


def _tell(answer: Generation, told: int) -> int:
    """Print what happened to the link since `told` notices; returns how many there are."""
    found = getattr(answer.drafting, "notices", [])
    for notice in found[told:]:
        print(f"\n[{notice}]", file=sys.stderr, flush=True)
    return len(found)


def print_record(
    answer: Generation,
    size: tuple[int, int],
    seed: int,
    log_probabilities: bool,
    talk: Talk | None = None,
    constraint: TokenConstraint | None = None,
) -> None:
    from haversack.core.measurement import machine
    from haversack.core.memory import peak_mib
    from haversack.run._residency import telling

    engine = answer.engine
    record = {
        "text": answer.text,
        "tokens": len(answer.tokens),
        "prompt_tokens": answer.prompt_tokens,
        "stop": answer.stop,
        "first_token_ms": round(answer.first_token_ms, 3),
        "tokens_per_s": round(answer.tokens_per_s, 3),
        "ram_mib": {
            "planned": round(engine.memory_plan(size).total_mib, 2),
            "measured": round(peak_mib(engine.model.source.files), 2),
        },
        "plan": engine.plan,
        "seed": seed,
        "machine": machine(),
    }
    if log_probabilities:
        record["log_probabilities"] = [
            {"token": token, "log_probability": round(value, 6)}
            for token, value in zip(answer.tokens, answer.log_probabilities, strict=True)
        ]
    if talk is not None and talk.tools is not None:
        record["text"], record["tool_calls"] = talk.calls(answer.text)
    if engine.tally:
        record["sparsity"] = {key: value for key, value in engine.tally.stats().items() if key != "layers"}
    if engine.head_predictor is not None:
        record["head"] = engine.head_predictor.record()
    if (held := telling(engine.held)) is not None:
        record[held.told] = held.record(answer.seconds)
    if answer.drafting is not None:
        record[answer.drafting.told] = answer.drafting.stats()
    if engine.reader is not None:
        record["attention"] = engine.reader.tally.stats()
    if engine.told is not None:
        record["prefill"] = engine.told.record()
    if constraint is not None:
        record["valid"] = constraint.complete
    print_json(record)
