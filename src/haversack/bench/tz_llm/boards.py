"""The paper's five models on its board, simulated (simulate/restoration.py); and its known schedule."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.tz_llm._bench import SIMULATED, bench
from haversack.run.residency.sealed import Stages, bound_s, unpipelined_s
from haversack.simulate.restoration import MODELS, Model, compared, first_token_s


def slug(model: Model) -> str:
    return "board-" + model.name.lower().replace(".", "-")


@bench.measure(
    *[
        Row(
            slug(model),
            f"time of the first token of {model.name} at 8 bits (128 tokens) that is saved, simulated",
            "share",
            "quality",
            Bar("in", (0.70, 0.92)),
            judged="ours",
            published="0.761 to 0.909 over models and prompts",
            quick=True,
        )
        for model in MODELS
    ],
    Row(
        "accelerator",
        "first token of the largest with the accelerator over the same pipeline with processors, simulated",
        "s",
        "quality",
        Bar("<=", 0.9),
        published="prefill 7.3x on the accelerator",
    ),
    Row(
        "known-schedule",
        "four layers, stages 1, 2, 1 and 3: 28 unpipelined, 16 pipelined, 12 with two kept, reproduced",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        published="28, 16, 12",
        quick=True,
    ),
    seconds=2,
    quick_seconds=1,
    watches=SIMULATED,
)
def boards(run: Run) -> Outcomes:
    shown = [compared(model) for model in MODELS]
    found = {
        slug(one.model): Outcome.single(
            one.reduction, name="pipelined", note=f"{one.unpipelined:.2f} s, pipelined {one.pipelined:.2f} s"
        )
        for one in shown
    }
    last = shown[-1]
    found["accelerator"] = Outcome.single(
        last.pipelined, last.pipelined_by_processors, name="accelerator", against="processors"
    )
    layers = [Stages(1, 2, 1, 3)] * 4
    pairs = (
        (unpipelined_s(layers), 28),
        (first_token_s(layers), 16),
        (bound_s(layers), 16),
        (first_token_s(layers, kept=2), 12),
    )
    same = sum(got == said for got, said in pairs) / len(pairs)
    found["known-schedule"] = Outcome.single(same, name="events")
    return found
