"""What both speech families read of their configs in the same way."""

from __future__ import annotations

from haversack.models._config import Config

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def heads_of(config: Config, name: str, of: str, width: int) -> int:
    """The field `name`, a number of heads that divides the field `of`, which is `width`."""
    count = config.whole(name, most=65536)
    if width % count:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - count))
        raise config.wrong(name, f"does not divide {of}={width}", near)
    return count
