"""What each setting costs, counted: bit operations, stored bytes, bytes moved.

An utterance is a window of five seconds in the encoder and a string of four digits in the decoder, one token
at a time. Convolutions and attention's scores and mixtures stay float and count as 16-bit weights and
activations; the output matrix has 8 bits where the blocks have fewer.
"""

from __future__ import annotations

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.edge_asr._bench import MODELS, SETTINGS, Setting, bench, choice
from haversack.bench.edge_asr._models import counted, stored_sizes
from haversack.shrink.bit_operations import Cost, ratio_to_float

TOKENS = 5  # four digits and the end


def bits_row(size: str, setting: Setting) -> Row:
    """Whole model, floats included."""
    return Row(
        f"bops-{size}-{setting.name}",
        f"bit operations of an utterance, {setting.name} beside 16-bit weights and activations, {size} "
        "model, what stays float included",
        "bit operations",
        "bytes",
        quick=True,
    )


ROWS = (
    Row(
        "bops-quantized",
        "on the quantized layers w4a16 takes a quarter of w16a16's bit operations, exactly",
        "bit operations",
        "bytes",
        Bar("==", 0.25),
        published="0.25",
        quick=True,
    ),
    *(bits_row(size, setting) for size in MODELS for setting in SETTINGS.values()),
    *(
        Row(
            f"bytes-{size}-{setting.name}",
            f"bytes of all stored weights, {setting.name} by round-to-nearest beside f16, {size} model",
            "bytes",
            "bytes",
            quick=True,
        )
        for size in MODELS
        for setting in SETTINGS.values()
    ),
    *(
        Row(
            f"traffic-{size}-{setting.name}",
            f"bytes moved for an utterance: weights (scales included, once a token in the decoder) and "
            f"activations, {setting.name} beside f16, {size} model",
            "bytes",
            "bytes",
            quick=True,
        )
        for size in MODELS
        for setting in SETTINGS.values()
    ),
)


@bench.measure(*ROWS, seconds=10, quick_seconds=5)
def costs(run: Run) -> Outcomes:
    found: dict[str, Outcome | Unavailable] = {}
    for size in MODELS:
        for setting in SETTINGS.values():
            ids = [f"{kind}-{size}-{setting.name}" for kind in ("bops", "bytes", "traffic")]
            try:
                method = choice("rtn", setting)
            except Unavailable as reason:
                found.update({name: reason for name in ids})
                continue
            products, quantized = counted(size, setting, method, TOKENS)
            plan, floating = Cost.of(products), Cost.of(one.floating() for one in products)
            stored, plain = stored_sizes(size, method), stored_sizes(size, "keep:kind=f16")
            note = f"{method}; {plan.multiplications:,.0f} multiplications"
            found[ids[0]] = Outcome.single(
                plan.bit_operations, floating.bit_operations, against="w16a16", note=note
            )
            found[ids[1]] = Outcome.single(stored, plain, against="f16", note=method)
            found[ids[2]] = Outcome.single(
                plan.traffic_nbytes, floating.traffic_nbytes, against="f16", note=note
            )
            if (size, setting.name) == ("base", "w4a16"):
                cost, whole = Cost.of(quantized), Cost.of(one.floating() for one in quantized)
                found["bops-quantized"] = Outcome.single(
                    cost.bit_operations,
                    whole.bit_operations,
                    against="w16a16",
                    note=f"{len(quantized)} products; all layers: {ratio_to_float(products):.3f}",
                )
    return found
