"""Memory: the published counts to the hundredth of a KiB, and what the compiled step really needs.

The counts are those of the formula, which leaves the way forward and gradients out. The arena is that of the
compiled step of one example: activations of the way forward in 8 bits, bits of bounds, what is kept, and
gradients in f32, in one piece of memory; parameters that learn are counted beside it. The naive executor is
the same graph with every activation, its gradient and every parameter's gradient in f32 until the step is
over. PyTorch is measured from outside: the growth of a process's peak over what it holds after its import.
"""

from __future__ import annotations

import subprocess
import sys

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.tiny_training_256kb._bench import CONVOLUTIONS, MAIN, PUBLISHED, bench, model_file

KIB = 1024


def count_rows() -> list[Row]:
    """A row for each published figure."""
    return [
        Row(
            f"count-{model}-{name}",
            f"{model}, {name}: memory of one example by the published formula",
            "KiB",
            "memory",
            Bar("==", kib),
            judged="ours",
            published=kib,
            quick=True,
        )
        for model, schemes in PUBLISHED.items()
        for name, (_, kib) in schemes.items()
    ]


@bench.measure(*count_rows(), seconds=5, quick_seconds=3)
def counts(run: Run) -> Outcomes:
    from haversack.models.graph.mcu import load_mcu
    from haversack.train.parameters.sparse import convolutions, features_of, memory_report

    found: dict[str, Outcome | Unavailable] = {}
    for model, schemes in PUBLISHED.items():
        try:
            graph = load_mcu(model_file(model))
        except Unavailable as missing:
            found |= {f"count-{model}-{name}": missing for name in schemes}
            continue
        convs = convolutions(graph)
        for name, (scheme, _) in schemes.items():
            report = memory_report(convs, scheme, features_of(graph))
            note = f"{report.weights:,} bits of weights and biases, {report.activations:,} of activations"
            found[f"count-{model}-{name}"] = Outcome.single(round(report.kib, 2), note=note)
    return found


@bench.measure(
    Row(
        "count-ratio",
        "the 99.84 KiB scheme beside the last 12 layers",
        "KiB",
        "memory",
        Bar("in", (1 / 4.495, 1 / 4.485)),
        published="4.49 times less",
        quick=True,
    ),
    Row(
        "arena",
        "the compiled step of the 99.84 KiB scheme, the int8 way forward included",
        "KiB",
        "memory",
        Bar("<=", 256),
        judged="ours",
        published="<256 KB of SRAM",
        quick=True,
    ),
    Row(
        "sram",
        "the same with what learns (weights and biases that are changed lie in RAM)",
        "KiB",
        "memory",
        Bar("<=", 256),
        judged="ours",
        published="<256 KB of SRAM",
        quick=True,
    ),
    Row("flash", "weights and tables of the compiled step", "KiB", "bytes", Bar("<=", 1024), judged="ours",
        published="<1 MB", quick=True),
    Row(
        "naive-ratio",
        "a naive executor in f32 needs at least 15 times as much as the arena",
        "KiB",
        "memory",
        Bar(">=", 15),
        published="<1/1000 of PyTorch and TensorFlow, about 20x by sparse updates after >100x by the engine",
        quick=True,
    ),
    Row("arena-bound", "the arena beside the most that is alive at once", "KiB", "memory", Bar("<=", 1.1),
        quick=True),
    Row("arena-mbv2", "the arena of the 99.41 KiB scheme", "KiB", "memory", Bar("<=", 256), judged="ours"),
    Row("arena-proxyless", "the arena of the 98.53 KiB scheme", "KiB", "memory", Bar("<=", 256),
        judged="ours"),
    Row("sram-mbv2", "the same with what learns", "KiB", "memory", judged="ours"),
    Row("sram-proxyless", "the same with what learns", "KiB", "memory", judged="ours"),
    seconds=10,
    quick_seconds=6,
)  # fmt: skip
def arenas(run: Run) -> Outcomes:
    from haversack.models.graph import plan
    from haversack.models.graph.autodiff import backward, with_loss
    from haversack.models.graph.mcu import load_mcu
    from haversack.models.graph.training import HEAD, compiled, with_head
    from haversack.train.parameters.sparse import learned_channels
    from haversack.train.precision.int8_qas import factors_of

    found: dict[str, Outcome | Unavailable] = {}
    for model, name in ((MAIN, "100"), ("mbv2", "99"), ("proxyless", "98")):
        end = "" if model == MAIN else f"-{model}"
        try:
            graph = with_head(load_mcu(model_file(model)), 10, 0)
        except Unavailable as missing:
            found |= {f"arena{end}": missing, f"sram{end}": missing}
            continue
        wanted = {**learned_channels(graph, PUBLISHED[model][name][0]), **dict.fromkeys(HEAD)}
        factors = {each: values for each, (values, _) in factors_of(graph).items()}
        step = compiled(graph, wanted, factors=factors)
        wrong = plan.faults(step.graph, step.arena)
        note = "; ".join(wrong) or f"{len(step.graph.ops)} operations, no tensors share bytes while alive"
        arena = step.arena.nbytes / KIB
        found[f"arena{end}"] = Outcome.single(float("nan") if wrong else arena, note=note)
        found[f"sram{end}"] = Outcome.single(step.peak_sram / KIB)
        if model == MAIN:
            whole = plan.naive_nbytes(backward(with_loss(graph))) / KIB
            found["naive-ratio"] = Outcome.single(whole, arena, name="naive", against="arena")
            found["arena-bound"] = Outcome.single(arena, step.arena.bound / KIB, against="alive at once")
            found["flash"] = Outcome.single(step.flash / KIB, note="code is not counted")
    ours, theirs = (PUBLISHED[MAIN][name][1] for name in ("100", "last-12"))
    found["count-ratio"] = Outcome.single(ours, theirs, name="sparse", against="last 12")
    return found


@bench.measure(
    Row(
        "pytorch",
        "growth of a PyTorch process's memory in one step of all layers, beside the arena",
        "KiB",
        "memory",
        published="<1/1000 of PyTorch and TensorFlow",
    ),
    Row("pytorch-sparse", "the same, the 99.84 KiB scheme's tensors alone", "KiB", "memory"),
    seconds=30,
)
def against_pytorch(run: Run) -> Outcomes:
    from haversack.models.graph.mcu import load_mcu
    from haversack.models.graph.training import HEAD, compiled, with_head
    from haversack.train.parameters.sparse import learned_channels

    path = model_file(MAIN)
    graph = with_head(load_mcu(path), 10, 0)
    wanted = {**learned_channels(graph, PUBLISHED[MAIN]["100"][0]), **dict.fromkeys(HEAD)}
    arena = compiled(graph, wanted).arena.nbytes / KIB
    found: dict[str, Outcome | Unavailable] = {}
    for row, count in (("pytorch", CONVOLUTIONS[MAIN]), ("pytorch-sparse", 22)):
        names = [] if row == "pytorch" else list(wanted)
        program = [sys.executable, "-m", "haversack.bench.tiny_training_256kb._torch_worker"]
        done = subprocess.run([*program, str(path), *names], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word"])[-1]
            found[row] = Unavailable(f"PyTorch did not run the step: {said}")
            continue
        before, after = (int(each) for each in done.stdout.split())
        note = f"{before:,} KiB after the import and the weights, {after:,} at the peak; {count} layers back"
        found[row] = Outcome.single(after - before, arena, name="PyTorch", against="arena", note=note)
    return found
