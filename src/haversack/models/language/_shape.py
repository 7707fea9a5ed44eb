"""Sizes that every decoder has, windows and activations, as hub configs say them."""

from __future__ import annotations

from dataclasses import dataclass

from haversack.core.errors import UserError
from haversack.models._config import Config

GATES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "relu": "relu",
}
LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Shape:
    """Sizes every decoder has."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    context: int
    eps: float


def read_shape(
    config: Config,
    *,
    key_value_heads: int | None = None,
    head_width: int | None = None,
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
) -> Shape:
    """The sizes of a config, checked against one another.

    `key_value_heads` and `head_width` are the family's defaults when the config names none (else: as many as
    heads, and width / heads); `eps` is the name of the norms' field and its default.
    """
    if config.has("quantization_config"):
        raise UserError(
            "config.json: quantization_config says that the weights are quantized in a format that is "
            "not read; "
            "give the unquantized checkpoint and let `haversack pack` quantize it.",
            field="quantization_config",
        )
    width = config.whole("hidden_size")
    heads = config.whole("num_attention_heads", most=65536)
    if config.has("head_dim"):
        head_width = config.whole("head_dim", most=65536)
    elif head_width is None:
        if width % heads:
            raise config.wrong(
                "num_attention_heads",
                f"does not divide {config.named('hidden_size')}={width}",
                _divisor(width, heads),
            )
        head_width = width // heads
    key_value_heads = config.whole("num_key_value_heads", key_value_heads or heads, most=65536)
    if heads % key_value_heads:
        raise UserError(
            f"{config.what}: num_key_value_heads={key_value_heads} does not divide "
            f"num_attention_heads={heads}.",
            field="num_key_value_heads",
            given=key_value_heads,
            nearest=_divisor(heads, key_value_heads),
        )
    return Shape(
        vocabulary=config.whole("vocab_size"),
        width=width,
        layers=config.whole("num_hidden_layers", most=4096),
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        feed_forward=config.whole("intermediate_size"),
        context=config.whole("max_position_embeddings"),
        eps=config.number(*eps, above=False),
    )


def _divisor(total: int, given: int) -> int:
    """The divisor of `total` nearest to `given`."""
    return min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - given))


def windows(config: Config, layers: int, default: list[bool]) -> list[int | None]:
    """Window of each block from `layer_types`, or from `default` (True: sliding) when the config has none."""
    types = config.strings("layer_types", layers, LAYER_TYPES)
    sliding = [kind == "sliding_attention" for kind in types] if types else default
    if not any(sliding):
        return [None] * layers
    window = config.whole("sliding_window")
    return [window if slides else None for slides in sliding]
