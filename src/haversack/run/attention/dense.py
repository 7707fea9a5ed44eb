"""Dense attention: every token sees all tokens before it, or as many as the model's own window says.

Papers: Vaswani et al., "Attention Is All You Need" (2017); windows: Beltagy et al., "Longformer" (2020).
Cost: one pass over the visible part of the cache for each query. Layers with a window keep that and a slack
of 384 entries, not the whole context.
"""

from __future__ import annotations

from dataclasses import dataclass

from haversack.core.method import Method
from haversack.kernels import CacheLayer, Visible, attention
from haversack.models._architecture import Attention
from haversack.run._products import F32
from haversack.run._step import Step
from haversack.run._window import Window


@dataclass(frozen=True)
class Dense(Method):
    name = "dense"
    stage = "run"
    slot = "attention"
    paper = "Vaswani et al., Attention Is All You Need (2017)"
    summary = "Every token sees all before it, or as many as the model's own window says."
    provides = frozenset({"tree-mask"})

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the cache -> f32 [n, heads, head width]."""
        out: F32 = attention(query, cache, self.visible(step, layer), layer.scale, layer.softcap)
        return out

    def visible(self, step: Step, layer: Attention) -> Visible:
        """What each token sees."""
        return step.visible(layer.window)

    def keeps(self, layer: Attention) -> Window | None:
        """What a layer must hold of a text; None: all of it."""
        return None if layer.window is None else Window(layer.window)
