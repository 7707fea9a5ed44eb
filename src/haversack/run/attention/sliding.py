"""Sliding attention: a window of the last tokens, chosen for models that were trained without one.

Papers: Beltagy et al., "Longformer" (2020) for the window; Xiao et al., "Efficient Streaming Language Models
with Attention Sinks" (2024) for the first tokens that stay visible.
What is here: a query sees the last `window` positions, its own included, and the first `sink` entries. A
model's own, narrower window still holds; with a window at least as long as the text nothing changes.
What we changed: positions are those of the text, not of the window, so that keys are rotated once.
Cost: window + sink entries a query instead of all; the cache keeps these and a slack of 384 entries a layer.
Limits: the output differs from dense attention's once a text is longer than the window; that is the point,
and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.kernels import CacheLayer, Visible, attention
from haversack.models._architecture import Attention
from haversack.run._products import F32
from haversack.run._step import Step
from haversack.run._window import Window


@dataclass(frozen=True)
class Sliding(Method):
    name = "sliding"
    stage = "run"
    slot = "attention"
    paper = "Beltagy et al., Longformer (2020); Xiao et al., attention sinks (2024)"
    summary = "Every token sees a window of the last tokens, and the first few if asked."
    provides = frozenset({"tree-mask"})
    excludes = frozenset({"encoder-decoder"})

    window: int = parameter(1024, help="tokens that a token sees, itself included")
    sink: int = parameter(0, help="first tokens of the text that stay visible")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (("window", self.window, 1), ("sink", self.sink, 0)):
            if value < least:
                raise UserError(
                    f"{name}={value} is not supported (allowed {least} and more); use {name}={least}.",
                    field=name,
                    given=value,
                    nearest=least,
                )

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the cache -> f32 [n, heads, head width]."""
        out: F32 = attention(query, cache, self.visible(step, layer), layer.scale, layer.softcap)
        return out

    def visible(self, step: Step, layer: Attention) -> Visible:
        """What each token sees."""
        return step.visible(layer.window) if self._narrower(layer) else step.visible(self.window, self.sink)

    def keeps(self, layer: Attention) -> Window:
        """What a layer must hold of a text."""
        return Window(layer.window or 0) if self._narrower(layer) else Window(self.window, self.sink)

    def _narrower(self, layer: Attention) -> bool:
        """Whether the model's own window holds."""
        return layer.window is not None and layer.window <= self.window
