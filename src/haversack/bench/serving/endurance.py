"""What a crowd of clients leaves behind, memory against its plan, and answers against those given alone."""

from __future__ import annotations

import asyncio
import json
import random

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.engine._models import code_folder, code_pack
from haversack.bench.serving._bench import bench
from haversack.bench.serving._server import PROMPTS, Served, crowd, together, words

REQUESTS = 1000
QUICK_REQUESTS = 100
CONTEXT = 512
BUDGET_MIB = 145


@bench.measure(
    Row(
        "crowd-memory",
        "1,000 requests with random disconnects leave no memory behind (baseline: after a long "
        "prompt, every context full once, and 200 more)",
        "MiB",
        "memory",
        Bar("<=", 1.02),
    ),
    Row(
        "crowd-slots",
        "and no slot, waiting answer, thread or file descriptor",
        "left",
        "quality",
        Bar("==", 0.0),
        judged="ours",
    ),
    Row(
        "serve-memory",
        "peak memory under that crowd stays within what was planned for its budget",
        "MiB",
        "memory",
        Bar("<=", 1.0),
        quick=True,
    ),
    seconds=60,
    quick_seconds=12,
)
def crowds(run: Run) -> Outcomes:
    options = ("--ram-mib", str(BUDGET_MIB), "--context-length", str(CONTEXT), "--queue", "32")
    with Served(code_folder(), *options) as served:
        fill = [
            served.request("def", CONTEXT, temperature=1, seed=i) for i in range(served.record["contexts"])
        ]
        asyncio.run(together(served.port, [served.request(words(random.Random(1), 120), 2)]))
        asyncio.run(together(served.port, fill))
        asyncio.run(crowd(served, 200, run.seed))
        served.still()
        before = served.status("VmRSS"), served.status("Threads"), served.descriptors()
        count = QUICK_REQUESTS if run.quick else REQUESTS
        whole = asyncio.run(crowd(served, count, run.seed + 1))
        served.still()
        state = served.state()
        after = served.status("VmRSS"), served.status("Threads"), served.descriptors()
        left = state["running"] + state["waiting"]
        left += max(0, after[1] - before[1]) + max(0, after[2] - before[2])
        peak, planned = served.status("VmHWM") / 1024, served.record["planned_mib"]
        contexts = served.record["contexts"]
    note = f"{whole} of {count} were whole, the others left; {contexts} answers at once"
    budget = f"budget {BUDGET_MIB} MiB; {note}"
    found = {"serve-memory": Outcome.single(peak, planned, name="measured", against="planned", note=budget)}
    if not run.quick:
        found["crowd-slots"] = Outcome.single(left, name="left", note=note)
        found["crowd-memory"] = Outcome.single(
            after[0] / 1024, before[0] / 1024, name="after", against="before", note=note
        )
    return found


@bench.measure(
    Row(
        "batch-exact",
        "answers that share steps are token for token those given alone (share of answers)",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        quick=True,
    ),
    seconds=30,
    quick_seconds=15,
)
def batch_exact(run: Run) -> Outcomes:
    """Over HTTP, eight at once, against `generate` in this process; f32, f16 and int8 caches."""
    from haversack.run import Engine, Limits, Sampler, generate

    same, count = 0, 0
    cases = [
        (code_folder(), "f32", "f32"),
        (code_pack("round-to-nearest:bits=8"), "f16", "f32"),
        (code_pack("round-to-nearest:bits=4"), "int8", "int8-dynamic"),
    ]
    for model, cache_type, activations in cases:
        chosen = ("--cache-type", cache_type, "--activations", activations)
        with Served(model, "--contexts", "5", *chosen) as served:
            requests = [
                served.request(prompt, 48, temperature=0.9, seed=run.seed + i, ignore_eos=False)
                for i, prompt in enumerate(PROMPTS)
            ]

            answers = [
                json.loads(data.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
                for data, _ in asyncio.run(together(served.port, requests))
            ]
        with Engine.open(model, cache_type=cache_type, activations=activations) as engine:
            tokenizer = engine.model.tokenizer()
            for i, (prompt, text) in enumerate(zip(PROMPTS, answers, strict=True)):
                tokens = np.asarray(tokenizer.encode(prompt), np.int32)
                alone = generate(engine, tokens, Limits(48), Sampler(0.9, seed=run.seed + i), tokenizer)
                same += "".join(token.text for token in alone) == text
                count += 1
    note = f"{count} answers of 48 tokens at temperature 0.9: f16, int8 and int4 weights, three cache types"
    return {"batch-exact": Outcome.single(same / count, name="batch", note=note)}
