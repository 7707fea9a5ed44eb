"""A speech model's arithmetic: convolutions over sound, the encoder's blocks, the decoder's steps.

    states = forward.states(rows, weights)                        # rows of a spectrogram, or samples
    listened = forward.listen(states, weights)                    # keys and values of the states, made once
    logits = forward.write(tokens, cache, listened, weights)

A convolution is a product of its matrix with windows of its input; everything else are the layers of
language models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from haversack.kernels import CacheLayer, Visible, attention, gate
from haversack.models._architecture import Attention, Layer
from haversack.models.audio._record import Convolution, SpeechArchitecture
from haversack.run._cache import Cache
from haversack.run._encode import BothWays
from haversack.run._forward import Forward
from haversack.run._products import F32, Tap, multiply, normalize
from haversack.run._step import Step
from haversack.run._weights import Weights, embedding_rows
from haversack.run.layers.cross_attention import listen

I32 = npt.NDArray[np.int32]
ROWS = 256
"""Windows of a convolution, and tokens of a decoder's step, that are multiplied at once."""


class Seen:
    """Attention of a decoder's tokens to the entries of the cache that `mask` bool [n, entries] names, or,
    while it is None, to all before them and to themselves."""

    def __init__(self) -> None:
        self.mask: npt.NDArray[np.bool_] | None = None

    def attend(self, query: F32, cache: CacheLayer, step: Step, layer: Attention) -> F32:
        """query f32 [n, heads, head width] over the cache -> f32 [n, heads, head width]."""
        seen = Visible(step.start) if self.mask is None else Visible(0, None, self.mask)
        found: F32 = attention(query, cache, seen, layer.scale, layer.softcap)
        return found


class SpeechForward:
    """The arithmetic of `architecture`. `activations`: type of the inputs of packed matrices, f32 or
    int8-dynamic."""

    def __init__(self, architecture: SpeechArchitecture, *, activations: str = "f32") -> None:
        self.architecture = architecture
        self.activations = activations
        self._both_ways = BothWays()
        self.seen = Seen()
        self._encoder = Forward(
            architecture.encoder,  # type: ignore[arg-type]  # blocks and width are all that is asked of it
            activations=activations,
            attention=self._both_ways,
            rows=1,
        )
        self._decoder = Forward(architecture.decoder, activations=activations, attention=self.seen, rows=1)

    # sound to states

    def stem(self, rows: F32, weights: Weights) -> F32:
        """rows f32 [n, channels] (of samples: one channel) -> f32 [frames, width], positions added."""
        encoder = self.architecture.encoder
        hidden = rows
        for convolution in encoder.stem:
            hidden = self.convolve(convolution, hidden, weights)
        if encoder.positions is not None:
            places = np.arange(len(hidden), dtype=np.int32)
            hidden += embedding_rows(weights[encoder.positions.weight], places)
        return hidden

    def convolve(self, convolution: Convolution, rows: F32, weights: Weights) -> F32:
        """rows f32 [n, channels] -> f32 [length, outputs]."""
        count, taps, stride = convolution.length(len(rows)), convolution.taps, convolution.stride
        padded = np.pad(rows, ((convolution.padding,) * 2, (0, 0))) if convolution.padding else rows
        windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=0)[::stride]
        out = np.empty((count, convolution.matrix.outputs), np.float32)
        for start in range(0, count, ROWS):
            part = out[start : start + ROWS]
            x = np.ascontiguousarray(windows[start : start + len(part)], np.float32).reshape(len(part), -1)
            multiply(x, (convolution.matrix,), weights, (part,), self.activations)
        if convolution.activation == "tanh":
            np.tanh(out, out=out)
        else:
            gate(out, None, convolution.activation, out=out)
        if convolution.group_norm is not None:
            weight, bias, eps = convolution.group_norm
            mean = out.mean(dtype=np.float64)
            deviation = np.sqrt(out.var(dtype=np.float64) + eps)
            scale = weights[weight] / np.float32(deviation)
            out *= scale
            out += weights[bias] - np.float32(mean) * scale
        return out

    def encode(self, index: int, hidden: F32, weights: Weights, tap: Tap | None = None) -> None:
        """Take `hidden` f32 [frames, width] through the encoder's block `index` in place."""
        block = self.architecture.encoder.blocks[index]
        layer = block.attention
        assert layer is not None
        cache = CacheLayer.empty(layer.key_value_heads, len(hidden), layer.head_width)
        self._both_ways.bounds = [0, len(hidden)]
        step = Step(np.arange(len(hidden), dtype=np.int32), 0)
        self._encoder.advance(block, hidden, step, cache, weights, tap)

    def finish(self, hidden: F32, weights: Weights) -> F32:
        """The encoder's last norm over `hidden` f32 [frames, width], in place."""
        return normalize(self.architecture.encoder.norm, hidden, weights, hidden)

    def states(self, rows: F32, weights: Weights) -> F32:
        """The encoder's states f32 [frames, width] of a spectrogram f32 [n, bands] or samples f32 [n, 1]."""
        hidden = self.stem(rows, weights)
        for index in range(len(self.architecture.encoder.blocks)):
            self.encode(index, hidden, weights)
        self._encoder.scratch.shrink(1)
        return self.finish(hidden, weights)

    # states to text

    def listen(self, states: F32, weights: Weights, kind: str = "f32") -> list[CacheLayer | None]:
        """Keys and values of `states` f32 [frames, width] for every block of the decoder."""
        return [
            None
            if block.cross_attention is None
            else listen(block.cross_attention, states, weights, kind, self.activations)
            for block in self.architecture.decoder.blocks
        ]

    def embed(self, tokens: I32, positions: I32, weights: Weights) -> F32:
        """The decoder's hidden states f32 [n, width] of `tokens` i32 [n] before its first block."""
        decoder = self.architecture.decoder
        places = None
        if decoder.positions is not None:
            places = weights[decoder.positions.weight], positions
        return self._decoder.embed(tokens, weights[decoder.embedding], weights, places)

    def advance(
        self,
        index: int,
        hidden: F32,
        step: Step,
        cache_layer: CacheLayer,
        listened: CacheLayer | None,
        weights: Weights,
        tap: Tap | None = None,
    ) -> None:
        """Take `hidden` f32 [n, width] through the decoder's block `index` in place."""
        block = self.architecture.decoder.blocks[index]
        self._decoder.advance(block, hidden, step, cache_layer, weights, tap, listened)

    def write(
        self,
        tokens: Sequence[int] | I32,
        cache: Cache,
        listened: Sequence[CacheLayer | None],
        weights: Weights,
        *,
        every: bool = False,
        positions: I32 | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> F32:
        """Read `tokens` [n], which become the cache's next entries -> logits f32 [1, vocabulary] of the last,
        or with `every` f32 [n, vocabulary].

        `positions` i32 [n] (default: those after the cache's entries) and `mask` bool [n, entries + n] of
        what each sees are those of several texts that are written at once.
        """
        ids = np.ascontiguousarray(tokens, np.int32)
        start, n = cache.length, len(ids)
        cache.require(n)
        places = np.arange(start, start + n, dtype=np.int32) if positions is None else positions
        hidden = self.embed(ids, places, weights)
        self.seen.mask = mask
        step = Step(places, start)
        for index in range(len(self.architecture.decoder.blocks)):
            layer = cache.layers[index]
            assert layer is not None
            self.advance(index, hidden, step, layer, listened[index], weights)
        cache.place(places, ids)
        cache.append(n, positions is None)
        normal = self._decoder.finish(hidden if every else hidden[-1:], weights)
        return self.logits(normal, weights)

    def layer(self, block: int, layer: Layer, x: F32, cache: CacheLayer, weights: Weights) -> F32:
        """What `layer` of block number `block`, the decoder's counted behind the encoder's, makes of x f32
        [n, width], as a new array."""
        positions = np.arange(len(x), dtype=np.int32)
        self._both_ways.bounds, self.seen.mask = [0, len(x)], None
        encodes = block < len(self.architecture.encoder.blocks)
        forward = self._encoder if encodes else self._decoder
        return forward.layer_forward(layer, x, positions, cache, weights)

    def logits(self, normal: F32, weights: Weights) -> F32:
        """Logits f32 [n, vocabulary] of normalized hidden states."""
        head = self.architecture.decoder.head
        bias = None if head.bias is None else weights[head.bias]
        return self._decoder.head(normal, weights[head.weight], None, bias)
