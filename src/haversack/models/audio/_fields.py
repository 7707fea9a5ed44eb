"""What both speech families read of their configs in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from haversack.core.errors import UserError, unknown_name
from haversack.models._config import Config

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def refuse_others(config: Config, classes: Sequence[str]) -> None:
    """Raises UserError for classes of the family that do not write text, and for quantized checkpoints."""
    if config.has("quantization_config"):
        raise UserError(
            "config.json: quantization_config says that the weights are quantized in a format that is not "
            "read; give the unquantized checkpoint and let `haversack pack` quantize it.",
            field="quantization_config",
        )
    if not config.flag("is_encoder_decoder", True):
        raise config.wrong("is_encoder_decoder", "leaves one half of a speech model out (allowed true)", True)
    listed = config.values.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else listed
    if named is not None and named not in classes:
        raise unknown_name("config.json: architectures", str(named)[:80], classes, field="architectures")


def heads_of(config: Config, name: str, of: str, width: int) -> int:
    """The field `name`, a number of heads that divides the field `of`, which is `width`."""
    count = config.whole(name, most=65536)
    if width % count:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - count))
        raise config.wrong(name, f"does not divide {of}={width}", near)
    return count
