"""Real weights: the 1x1 convolutions of SpellingCNN in few bits, beside the int8 network that ships with it.

The network is Moonshine's (51 classes, ONNX f32). Its 1x1 convolutions hold most of its weights; a method
rounds them one after another on what the convolutions before, already rounded, send in, and the network is
asked again. Calibrated on recordings of the training split, judged on held-out ones by how often the largest
of 51 logits is the float network's, and by the digits named rightly (in the note). Between these convolutions
lie clipped activations, so AWQ's scales cannot be folded: they are kept, one number an input channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._spelling_cnn import (
    MODEL,
    SHIPPED_INT8,
    Array,
    answers,
    data,
    heard,
    named_digits,
    onnx_libraries,
    pointwise,
    spoken_digits,
)
from haversack.bench.edge_asr._bench import GROUP, NAMES, bench
from haversack.core import index
from haversack.shrink._precision import Gathering, Quantized
from haversack.shrink._rounding import F32, restored

METHODS = ("rtn", "gptq", "awq")
BITS = (8, 4, 3)
CALIBRATION = 60
OUTSIDE_BITS = 32  # stem, depthwise convolutions and classifier stay f32


def agreement_row(method: str, bits: int) -> Row:
    """One method at one width."""
    return Row(
        f"spelling-{method}-{bits}",
        f"SpellingCNN, 1x1 convolutions by {NAMES[method]} at {bits} bits: answers that stay the "
        "float network's, beside those of its shipped int8 network",
        "share",
        "quality",
        published="int8 = f32 = 90.91 % on 220 clips of its authors",
        quick=(method, bits) == ("rtn", 4),
    )


def quantizer(method: str, bits: int) -> tuple[Callable[[F32, F32], F32], Callable[[int, int], int]]:
    """A function of a matrix f32 [outputs, inputs] and of what goes in f32 [n, inputs] that gives the matrix
    as it reads back, and one of (outputs, inputs) that gives its bytes.

    Raises Unavailable where the method has not so many bits.
    """
    entry = {one.name: one for one in index.methods("shrink", "precision")}.get(NAMES[method])
    if entry is None:
        raise Unavailable(f"there is no precision method {NAMES[method]} yet")
    widths = next(one for one in entry.parameters if one.name == "bits")
    allowed: tuple[Any, ...] = tuple(widths.allowed or ())
    if bits not in allowed:
        raise Unavailable(f"{NAMES[method]} has no bits={bits} (allowed {', '.join(map(str, allowed))})")
    grouping = "" if bits == 8 else f",group={GROUP}"
    found: Any = index.create("shrink", "precision", f"{NAMES[method]}:bits={bits}{grouping}")

    def quantize(weight: F32, inputs: F32) -> F32:
        scales = None
        if method == "awq":
            scales = _channel_scales(weight, inputs, found)
            weight, inputs = weight * scales, inputs / scales
        gathered = Gathering(weight.shape[1], found.needs, len(inputs))
        gathered.add(np.ascontiguousarray(inputs))
        answer: Quantized = found.quantize({"conv": weight}, gathered.finish("conv"))["conv"]
        back = restored(answer.codes, answer.scales, answer.kind.group)
        return back if scales is None else back / scales

    def nbytes(outputs: int, inputs: int) -> int:
        kept = 2 * inputs if method == "awq" else 0
        return int(found.stored(outputs, inputs).nbytes(outputs, inputs)) + kept

    return quantize, nbytes


def _channel_scales(weight: F32, inputs: F32, method: Any) -> F32:
    """AWQ's scales of the input channels with the least error of the product."""
    from haversack.shrink.precision.awq import rounded, searched_scales

    group = None if method.bits == 8 else method.group
    wanted = inputs @ weight.T

    def error_of(scales: F32) -> float:
        missed = inputs @ rounded(weight, method.bits, group, method.scales, scales).T - wanted
        return float(np.square(missed).mean())

    return searched_scales(np.abs(inputs).mean(axis=0), error_of)[0]


def compressed(content: bytes, features: Array, quantize: Callable[[F32, F32], F32]) -> bytes:
    """The model with its 1x1 convolutions quantized in order of use, each on the inputs it will get."""
    onnx, onnxruntime = onnx_libraries()
    model = onnx.load_from_string(content)
    outputs = list(model.graph.output)
    for node, initial in pointwise(model):
        # A session that ends at this convolution's input.
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[0]))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        entering = np.concatenate(
            [
                session.run([node.input[0]], {"log_mel": features[at : at + 20]})[0]
                for at in range(0, len(features), 20)
            ]
        )
        inputs = np.moveaxis(entering, 1, -1).reshape(-1, entering.shape[1])
        dense = onnx.numpy_helper.to_array(initial)
        found = quantize(np.ascontiguousarray(dense[:, :, 0, 0]), np.ascontiguousarray(inputs))
        initial.CopyFrom(onnx.numpy_helper.from_array(found.reshape(dense.shape), initial.name))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    whole: bytes = model.SerializeToString()
    return whole


def shipped_logits(features: Array) -> Array:
    """Logits f32 [n, 51] of the int8 network that its authors ship. Raises Unavailable without LiteRT."""
    path = data(SHIPPED_INT8)
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise Unavailable(
            "ai-edge-litert, which runs the shipped int8 network, is not installed; run: pip install "
            "ai-edge-litert"
        ) from None
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = entry["quantization"]
    back, shift = result["quantization"]
    logits = []
    for one in features:
        codes = np.clip(np.rint(one / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], codes[None])
        interpreter.invoke()
        logits.append((interpreter.get_tensor(result["index"])[0].astype(np.float32) - shift) * back)
    return np.stack(logits)


@bench.measure(
    *(agreement_row(method, bits) for bits in BITS for method in METHODS),
    Row(
        "spelling-bytes",
        "SpellingCNN's bytes with 1x1 convolutions in 4 bits and the rest in f32, beside the "
        "shipped int8 file",
        "bytes",
        "bytes",
    ),
    seconds=150,
    quick_seconds=20,
)
def spelling(run: Run) -> Outcomes:
    content = data(MODEL).read_bytes()
    onnx, _ = onnx_libraries()
    recordings = spoken_digits()
    rng = np.random.default_rng(run.seed)
    training = [one for one in recordings if one.split == "train"]
    drawn = sorted(rng.choice(len(training), CALIBRATION, replace=False))
    calibration, _ = heard([training[at] for at in drawn])
    features, digits = heard([one for one in recordings if one.split == "test"])
    plain = answers(content, features)
    said = plain.argmax(axis=1)
    right = float((named_digits(plain) == digits).mean())
    shipped: Side | None = None
    lacking = ""
    try:
        theirs = shipped_logits(features)
        shipped = Side("shipped int8", (float((theirs.argmax(axis=1) == said).mean()),))
        lacking = f", {float((named_digits(theirs) == digits).mean()):.3f} by shipped int8"
    except Unavailable as reason:
        lacking = f"; {reason}"
    found: dict[str, Outcome | Unavailable] = {}
    for bits in BITS:
        for method in METHODS:
            row = agreement_row(method, bits)
            if run.quick and not row.quick:
                continue
            run.say(row.id)
            try:
                quantize, _ = quantizer(method, bits)
            except Unavailable as reason:
                found[row.id] = reason
                continue
            logits = answers(compressed(content, calibration, quantize), features)
            agreed = float((logits.argmax(axis=1) == said).mean())
            named = float((named_digits(logits) == digits).mean())
            note = f"{len(digits)} clips; digits right: {named:.3f}, {right:.3f} in float{lacking}"
            found[row.id] = Outcome(Side(NAMES[method], (agreed,)), shipped, note)
    if not run.quick:
        found["spelling-bytes"] = _bytes(onnx, content)
    return found


def _bytes(onnx: Any, content: bytes) -> Outcome:
    """Everything that is stored, by round-to-nearest at 4 bits."""
    model = onnx.load_from_string(content)
    _, nbytes = quantizer("rtn", 4)
    inside = {initial.name: tuple(initial.dims) for _, initial in pointwise(model)}
    rounded = sum(nbytes(*shape[:2]) for shape in inside.values())
    others = sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.name not in inside)
    ours = rounded + others * OUTSIDE_BITS // 8
    note = (
        f"1x1 convolutions {rounded:,}, the rest {others * OUTSIDE_BITS // 8:,}; the file holds its graph too"
    )
    return Outcome.single(ours, data(SHIPPED_INT8).stat().st_size, against="shipped int8 file", note=note)
