"""The schedules with a phone's times, simulated (simulate/npu_prefill.py), and the specified ones."""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.mllm_npu._bench import SIMULATED, bench
from haversack.run.prefill._schedule import FLOATS, INTEGERS, POLICIES
from haversack.simulate.npu_prefill import (
    CPU_INT8,
    NPU_FLOAT,
    Decoder,
    Phone,
    layer_sequence,
    phone_times,
    preparation_s,
    simulate,
)

LENGTHS = 20
CHUNKS, TOKENS = 4, 256
DECODERS = (
    Decoder(),
    Decoder("Gemma-2B", 18, 2048, 16384),
    Decoder("Phi-2", 32, 2560, 10240),
    Decoder("LLaMA-2-7B", 32, 4096, 11008),
)
KNOWN = {(2, 2): (66, 49, 49), (2, 4): (140, 99, 101), (4, 4): (280, 197, 197)}
PLACES = "times from sizes and the paper's ratios; what is assumed stands in simulate/npu_prefill.py"


def known_schedules() -> float:
    """The share of the specified spans, and of work of the accelerator, that comes out."""
    right = []
    for (layers, chunks), spans in KNOWN.items():
        times = [[1, 4, 3 + chunk, 8] * layers for chunk in range(chunks)]
        for policy, span in zip(POLICIES, spans, strict=True):
            found = simulate(layer_sequence(layers), times, policy)
            right.append(found.span == span and found.busy(INTEGERS) == 12 * layers * chunks)
    return sum(right) / len(right)


@bench.measure(
    Row(
        "known-schedules",
        "spans of the specification's nine schedules, reproduced",
        "share",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        published="66, 49, 49; 140, 99, 101; 280, 197, 197",
        quick=True,
    ),
    Row(
        "phone-saving",
        f"time of a prompt of {CHUNKS} chunks of {TOKENS}, 24 layers, simulated: out of order beside serial",
        "ms",
        "quality",
        Bar("<=", 0.82),
        published="18 to 44 % less",
        quick=True,
    ),
    Row(
        "phone-order",
        "out of order beside chunk order, simulated: the worst of four models, one to eight chunks, three "
        "lengths",
        "ratio",
        "quality",
        Bar("<=", 1.03),
        judged="ours",
        quick=True,
    ),
    *[
        Row(
            f"phone-idle-{policy}",
            f"share of its time that the accelerator waits, 24 layers, {CHUNKS} chunks, simulated: {policy}",
            "share",
            "quality",
        )
        for policy in POLICIES
    ],
    Row(
        "phone-floats",
        "float subgraphs that the faster processor would be the accelerator for",
        "subgraphs",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        published="floats 193x slower there than integers",
    ),
    Row(
        "phone-preparation",
        f"seconds of building and optimising graphs for {LENGTHS} prompt lengths: one shape beside {LENGTHS}",
        "s",
        "quality",
        Bar("<=", 0.25),
        published="0.36 s and 11.54 s a length (Gemma-2B)",
    ),
    seconds=10,
    quick_seconds=5,
    watches=SIMULATED,
)
def phone(run: Run) -> Outcomes:
    model = DECODERS[0]
    times, sequence = phone_times(model, CHUNKS, TOKENS), layer_sequence(model.layers)
    plans = {policy: simulate(sequence, times, policy) for policy in POLICIES}
    serial, free = plans["serial"], plans["out-of-order"]
    worst, where = 0.0, ""
    for decoder in DECODERS:
        for chunks in range(1, 9):
            for tokens in (64, 128, 256):
                given = phone_times(decoder, chunks, tokens)
                one, other = (
                    simulate(layer_sequence(decoder.layers), given, policy).span
                    for policy in ("out-of-order", "chunk")
                )
                if one / other > worst:
                    worst, where = one / other, f"{decoder.name}, {chunks} chunks of {tokens}"
    found = {
        "known-schedules": Outcome.single(known_schedules()),
        "phone-saving": Outcome.single(
            free.span, serial.span, name="out of order", against="serial", note=f"{model.name}; {PLACES}"
        ),
        "phone-order": Outcome.single(worst, note=f"worst: {where}"),
    }
    for policy, plan in plans.items():
        note = f"{CHUNKS * TOKENS / plan.span * 1e3:.0f} tokens/s; {PLACES}"
        found[f"phone-idle-{policy}"] = Outcome.single(plan.idle(INTEGERS), name=policy, note=note)
    phone = Phone()
    attention = [2e-9 * model.width * (chunk + 0.5) * TOKENS**2 for chunk in range(CHUNKS)]
    wrong = [gmacs for gmacs in attention if phone.place(gmacs, floats=True) != FLOATS]
    ratios = f"integers {CPU_INT8}x slower on the processor, floats {NPU_FLOAT:.0f}x on the accelerator"
    found["phone-floats"] = Outcome.single(float(model.layers * len(wrong)), note=ratios)
    found["phone-preparation"] = Outcome.single(
        preparation_s(1), preparation_s(LENGTHS), name="one shape", against="a shape a length"
    )
    return found
