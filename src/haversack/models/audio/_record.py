"""What a speech model is made of: convolutions over sound, an encoder, and a decoder that listens to it.

    states = encoder(stem(sound));  text = decoder(tokens, states)

The decoder is the record of a language model whose blocks have cross-attention as well, so that everything
that runs, packs or compresses blocks does the same here. A convolution is a matrix [outputs, inputs * taps]
over windows of its input; checkpoints keep it as [outputs, inputs, taps], which is the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from haversack.models._architecture import Architecture, Block, Linear, Norm, Part, Positions

RATE = 16_000
"""Samples a second that both families hear."""


@dataclass(frozen=True)
class Convolution:
    """y[t] = activation(matrix . window of x at t * stride + bias); windows hold `taps` rows of x, each of
    `channels` numbers, channel after channel; `padding` rows of zeros are put at either end.

    `group_norm`: over all that comes out, before the next convolution: (weight, bias, eps); `activation` gelu
    or tanh comes before it.
    """

    matrix: Linear
    channels: int
    taps: int
    stride: int
    padding: int
    activation: str
    group_norm: tuple[str, str, float] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """As checkpoints keep the matrix: [outputs, channels, taps]."""
        return self.matrix.outputs, self.channels, self.taps

    def length(self, rows: int) -> int:
        """How many rows come out of `rows`; 0 when they are too few."""
        return max((rows + 2 * self.padding - self.taps) // self.stride + 1, 0)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(tensor name, shape) of each tensor."""
        yield from self.matrix.tensors()
        if self.group_norm is not None:
            for name in self.group_norm[:2]:
                yield name, (self.matrix.outputs,)


@dataclass(frozen=True)
class Encoder:
    """What turns sound into states: `stem`, then `positions` added, `blocks`, and `norm`.

    `bands` of a log-mel spectrogram come in, or, when None, samples. `window`: rows that the encoder always
    gets (shorter sound is padded with silence, longer is cut into windows); None: as many as there are.
    """

    width: int
    stem: tuple[Convolution, ...]
    blocks: tuple[Block, ...]
    norm: Norm
    bands: int | None = None
    positions: Positions | None = None
    window: int | None = None

    def frames(self, rows: int) -> int:
        """States that `rows` of input become."""
        for convolution in self.stem:
            rows = convolution.length(rows)
        return rows

    def stem_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what comes before the blocks."""
        found = {name: shape for convolution in self.stem for name, shape in convolution.tensors()}
        if self.positions is not None:
            found[self.positions.weight] = (self.positions.count, self.width)
        return found


@dataclass(frozen=True)
class SpeechArchitecture:
    """A speech model. `tokens_a_second` bounds how much is written of sound of a length; None: no bound.

    Names of tensors are unique over encoder and decoder, and blocks of both count from 0.
    """

    family: str
    encoder: Encoder
    decoder: Architecture
    tokens_a_second: float | None = None
    parts: tuple[Part, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.decoder.vocabulary

    @property
    def width(self) -> int:
        """Width of the states of encoder and decoder."""
        return self.decoder.width

    @property
    def head(self) -> Linear:
        """The output matrix."""
        return self.decoder.head

    @property
    def embedding(self) -> str:
        """The tokens' matrix."""
        return self.decoder.embedding

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The encoder's blocks, then the decoder's."""
        return self.encoder.blocks + self.decoder.blocks

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the whole model, in order of first use."""
        found = self.encoder.stem_tensors()
        for block in self.encoder.blocks:
            found.update(block.tensors())
        return found | dict(self.encoder.norm.tensors()) | self.decoder.tensors()

    def checkpoint_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the whole model as a checkpoint of the hub keeps it, convolutions flat."""
        parts = {part.name: part for part in self.parts}
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in self.tensors().items():
            part = parts.get(name)
            found.update({name: shape} if part is None else {part.holder: part.shape})
        return found

    def matrices(self) -> tuple[Linear, ...]:
        """Every matrix that multiplies, in order of use; the output matrix is the last."""
        stem = (convolution.matrix for convolution in self.encoder.stem)
        blocks = (linear for block in self.encoder.blocks for linear in block.matrices())
        return (*stem, *blocks, *self.decoder.matrices())

    def cross_nbytes(self, frames: int, cache_type: str = "f32") -> int:
        """Bytes of the decoder's keys and values of `frames` states."""
        number = {"f32": 4, "f16": 2, "int8": 1}[cache_type]
        total = 0
        for block in self.decoder.blocks:
            layer = block.cross_attention
            if layer is not None:
                entry = layer.head_width * number + (4 if cache_type == "int8" else 0)
                total += 2 * layer.key_value_heads * frames * entry
        return total
