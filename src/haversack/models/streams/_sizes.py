"""The tensors of a pipeline's model and their shapes, from its record."""

from __future__ import annotations

from haversack.core.errors import UserError
from haversack.models.streams._record import AUDIO_MODELS, HIDDEN, VIDEO_MODELS, WIDTH, Shape

Sizes = dict[str, tuple[int, ...]]


def _linear(name: str, out: int, into: int) -> Sizes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def tensor_shapes(shape: Shape) -> Sizes:
    """Name -> shape of every tensor. Raises UserError for an encoder that is not known."""
    found: Sizes = {}
    for size in shape.sizes:
        if size not in VIDEO_MODELS:
            raise UserError(
                f"there is no encoder {size[:40]!r} (allowed: {', '.join(VIDEO_MODELS)}).", field="sizes"
            )
        before = 1
        for at, (channels, _) in enumerate(VIDEO_MODELS[size]):
            found[f"video.{size}.conv{at}.weight"] = (channels, before, 3, 3)
            found[f"video.{size}.conv{at}.bias"] = (channels,)
            before = channels
        found |= _linear(f"video.{size}.head", WIDTH, 4 * before)
        found |= _video_aggregation(f"video.{size}.time")
        before = 1
        for at, (channels, kernel, _) in enumerate(AUDIO_MODELS[size]):
            found[f"audio.{size}.conv{at}.weight"] = (channels, before, kernel)
            found[f"audio.{size}.conv{at}.bias"] = (channels,)
            before = channels
        found |= _linear(f"audio.{size}.head", WIDTH, before)
        found |= _audio_aggregation(f"audio.{size}.time")
    for video in shape.sizes:
        for audio in shape.sizes:
            found |= _fusion(f"fusion.{video}.{audio}", 2, len(shape.labels))
    found |= _linear("predictor.one", 64, 6) | _linear("predictor.two", 64, 64)
    found |= _linear("predictor.label", len(shape.labels), 64) | _linear("predictor.accuracy", 1, 64)
    found |= _linear("gate.one", WIDTH, 2 * WIDTH) | _linear("gate.two", WIDTH // 2, WIDTH)
    return found | _linear("gate.three", 1, WIDTH // 2)


def _video_aggregation(prefix: str) -> Sizes:
    found: Sizes = {}
    for part in ("one", "two"):
        for dilation in (1, 2):
            found[f"{prefix}.{part}_depth{dilation}.weight"] = (WIDTH, 1, 3)
            found[f"{prefix}.{part}_depth{dilation}.bias"] = (WIDTH,)
            found |= _linear(f"{prefix}.{part}_point{dilation}", WIDTH, WIDTH)
    small = max(2, WIDTH // 16)
    found |= _linear(f"{prefix}.squeeze", small, WIDTH) | _linear(f"{prefix}.excite", WIDTH, small)
    found |= _linear(f"{prefix}.attend1", WIDTH // 4, WIDTH) | _linear(f"{prefix}.attend2", 1, WIDTH // 4)
    for name in ("motion", "forward1", "forward2"):
        found |= _linear(f"{prefix}.{name}", WIDTH, WIDTH)
    return found


def _audio_aggregation(prefix: str) -> Sizes:
    found: Sizes = {}
    hidden = WIDTH // 2
    for layer in (0, 1):
        for suffix in (f"l{layer}", f"l{layer}_reverse"):
            found[f"{prefix}.lstm.weight_ih_{suffix}"] = (4 * hidden, WIDTH)
            found[f"{prefix}.lstm.weight_hh_{suffix}"] = (4 * hidden, hidden)
            found[f"{prefix}.lstm.bias_ih_{suffix}"] = (4 * hidden,)
            found[f"{prefix}.lstm.bias_hh_{suffix}"] = (4 * hidden,)
    return found | _linear(f"{prefix}.out", WIDTH, WIDTH)


def _fusion(prefix: str, senses: int, classes: int) -> Sizes:
    found: Sizes = {}
    for at in range(senses):
        for number, (into, out) in enumerate(((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)), 1):
            found |= _linear(f"{prefix}.weigh{at}_{number}", out, into)
        found |= _linear(f"{prefix}.pass{at}_1", HIDDEN, WIDTH) | _linear(
            f"{prefix}.pass{at}_2", WIDTH, HIDDEN
        )
    found[f"{prefix}.attention.in_proj_weight"] = (3 * WIDTH, WIDTH)
    found[f"{prefix}.attention.in_proj_bias"] = (3 * WIDTH,)
    found |= _linear(f"{prefix}.attention.out_proj", WIDTH, WIDTH)
    sizes = (WIDTH, HIDDEN, HIDDEN, WIDTH)
    for at in range(3):
        found |= _linear(f"{prefix}.mix{at}", sizes[at + 1], sizes[at])
    middle = max(WIDTH // 4, 2 * classes)
    sizes = (WIDTH, middle, middle, classes)
    for at in range(3):
        found |= _linear(f"{prefix}.classify{at}", sizes[at + 1], sizes[at])
    return found
