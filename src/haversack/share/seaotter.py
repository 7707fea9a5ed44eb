"""Pixel cut: a sensor sends a few latents, the cloud decodes them once and keeps an ordinary JPEG.

Paper: SEAOTTER (Sensor Embedded Autoencoding with One-Time Transcode for Efficient Reconstruction, arXiv
2606.03940, 2026); its encoder is FRAPPE (models/vision/frappe.py). Clean-room: written from a description of
its equations.
What is here: the JPEG sandwich. Decoded pictures go through a learned transform of colours (a 3 x 3
convolution over the colours, then x -> gamma * 127 x / (sigma + |x|)) into the three components of a baseline
JPEG at 4:4:4 with three learned quantization tables, Q = 128.5 + 127.5 p / (1 + |p|); a consumer reads the
components as they are and undoes the transform, which is all that it costs. Training goes through a JPEG that
can be differentiated (8 x 8 DCT, /Q, noise, *Q, inverse) and a count of bits in the manner of run lengths;
both are here as definitions, share/_codec_proxy_torch.py has them with gradients. Variants of the colour
pair: A 1 x 1 with the squashing, B 1 x 1 clamped to -128 .. 127, D 3 x 3 with it, F as D with 6 bits
[inferred: +-31].
Training: share/_codec_train_torch.py (encoder, greedily, then one decoder for each n), _codec_sandwich_torch
(colours and tables for the eye: one pair, three tables), _codec_finetune_torch (decoder, colours and table
for a task whose network is frozen).
What we changed: filters start as the principal directions of the residual's patches, and bits are charged for
while they are learned, since minutes must do; a range coder with the channel's own distribution stands beside
JPEG-LS, and each scale takes the shorter; AdamW in place of Adan; a stream has a checksum, so that damage is
refused and not decoded.
Cost: sensor 3 n multiplications a pixel; cloud one pass of the decoder; consumer JPEG decoding and 81
multiplications a pixel.
Limits: a codec tuned for a task keeps what the task needs: its pictures are for machines. Stored bytes are
several times the sent ones; both are reported.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError, not_allowed
from haversack.core.method import Method, parameter
from haversack.kernels.pixels import mix_colours
from haversack.models.vision.frappe import expanded

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

VARIANTS = {"A": (1, 127.0), "B": (1, None), "D": (3, 127.0), "F": (3, 31.0)}
"""Side of the convolution, size of the squashing (None: a clamp)."""
RED, GREEN, BLUE = 0.299, 0.587, 0.114
JFIF = np.array(
    [
        [RED, GREEN, BLUE],
        [-0.5 * RED / (1 - BLUE), -0.5 * GREEN / (1 - BLUE), 0.5],
        [0.5, -0.5 * GREEN / (1 - RED), -0.5 * BLUE / (1 - RED)],
    ]
)
SPARE, SIGMA = 0.5, 1000.0
AC_BITS = 4.0


def table_entries(p: F64) -> F64:
    """Q = 128.5 + 127.5 p / (1 + |p|), of any number within 1 to 256."""
    found: F64 = 128.5 + 127.5 * p / (1 + np.abs(p))
    return found


def table_parameters(entries: F64) -> F64:
    """p of entries within 1 to 256, both left out."""
    t = (entries - 128.5) / 127.5
    found: F64 = t / (1 - np.abs(t))
    return found


def dct_matrix() -> F64:
    """[8, 8], orthonormal; row k is the cosine of frequency k."""
    k, x = np.mgrid[0:8, 0:8]
    made: F64 = np.cos((2 * x + 1) * k * np.pi / 16) * 0.5
    made[0] /= np.sqrt(2)
    return made


def zigzag() -> NDArray[np.int64]:
    """Raster place [64] of the coefficients in JPEG's order."""
    places = [
        (row + column, row if (row + column) % 2 else column, row * 8 + column)
        for row in range(8)
        for column in range(8)
    ]
    return np.array([place for _, _, place in sorted(places)])


def dct_blocks(planes: NDArray[Any]) -> F64:
    """Planes [.., h, w], sides multiples of 8, less 128 -> coefficients [.., h / 8, w / 8, 64], raster."""
    *front, height, width = planes.shape
    cut = (planes.astype(np.float64) - 128).reshape(*front, height // 8, 8, width // 8, 8)
    d = dct_matrix()
    found = np.einsum("ki,...yixj,lj->...yxkl", d, cut, d)
    made: F64 = found.reshape(*front, height // 8, width // 8, 64)
    return made


def run_length_bits(z: F64) -> F64:
    """Bits [.., blocks] of quantized coefficients [.., blocks, 64], raster, blocks in scan order.

    1 + log2(1 + |step of DC|), and for each other tanh(c^2) (log2(1 + |c|) + 4); not yet calibrated."""
    dc = z[..., 0]
    before = np.concatenate([np.zeros_like(dc[..., :1]), dc[..., :-1]], -1)
    ac = z[..., 1:]
    bits = np.tanh(ac**2) * (np.log2(1 + np.abs(ac)) + AC_BITS)
    found: F64 = 1 + np.log2(1 + np.abs(dc - before)) + bits.sum(-1)
    return found


def proxy_bpp(planes: U8, tables: NDArray[Any], alpha: float = 1.0) -> float:
    """Bits a pixel of planes u8 [h, w, 3] under tables [3, 8, 8], by the run-length count times alpha."""
    height, width = (side // 8 * 8 for side in planes.shape[:2])
    z = dct_blocks(planes[:height, :width].transpose(2, 0, 1))
    z = np.rint(z / np.asarray(tables, np.float64).reshape(3, 1, 1, 64))
    return float(alpha * run_length_bits(z.reshape(3, -1, 64)).sum() / (height * width))


@dataclass(frozen=True)
class Half:
    """One direction of a colour pair: weight f32 [3 out, 3 in, side, side], bias, sigma and gamma f32 [3]."""

    weight: F32
    bias: F32
    sigma: F32
    gamma: F32

    def kernel(self) -> F32:
        """[3 out, 3 rows, 3 columns, 3 in], a side of 1 filled up with zeros."""
        whole = np.zeros((3, 3, 3, 3), np.float32)
        taps = self.weight.transpose(0, 2, 3, 1)
        whole[:, 1:2, 1:2] = taps if taps.shape[1] == 1 else whole[:, 1:2, 1:2]
        return whole if taps.shape[1] == 1 else np.ascontiguousarray(taps)


@dataclass(frozen=True)
class ColourPair:
    """A transform of colours into JPEG's components and its inverse, of a variant A, B, D or F."""

    variant: str
    forward: Half
    inverse: Half

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise not_allowed("variant", self.variant, tuple(VARIANTS))
        side, _ = VARIANTS[self.variant]
        for half in (self.forward, self.inverse):
            shapes = [part.shape for part in (half.weight, half.bias, half.sigma, half.gamma)]
            if shapes != [(3, 3, side, side), (3,), (3,), (3,)]:
                raise UserError(f"a colour pair {self.variant} has other shapes than {shapes}.", field="pair")
            if not all(np.isfinite(part).all() for part in (half.weight, half.bias, half.sigma, half.gamma)):
                raise UserError("a colour pair holds what is no number.", field="pair")

    @property
    def id(self) -> str:
        """16 hexadecimal digits over all that undoes it."""
        digest = hashlib.sha256(self.variant.encode())
        for half in (self.forward, self.inverse):
            for part in (half.weight, half.bias, half.sigma, half.gamma):
                digest.update(np.ascontiguousarray(part, "<f4").tobytes())
        return digest.hexdigest()[:16]

    def to_planes(self, picture: U8) -> U8:
        """Picture u8 [h, w, 3] -> planes u8 of the same shape."""
        size = VARIANTS[self.variant][1]
        half = self.forward
        squash = None
        if size is not None:
            squash = np.stack([np.full(3, size), np.abs(half.sigma) + 1e-6, half.gamma], 1).astype(np.float32)
        table = np.tile(np.arange(256, dtype=np.float32) - 128, (3, 1))
        return mix_colours(picture, table, half.kernel(), half.bias, np.full(3, 128, np.float32), squash)

    def to_picture(self, planes: U8) -> U8:
        """Planes u8 [h, w, 3] -> picture: what every reading of a file costs."""
        size = VARIANTS[self.variant][1]
        half = self.inverse
        table = np.tile(np.arange(256, dtype=np.float32) - 128, (3, 1))
        if size is not None:
            v = table * half.gamma[:, None]
            table = expanded(v, half.sigma[:, None], size, SPARE).astype(np.float32)
        return mix_colours(planes, table, half.kernel(), half.bias, np.full(3, 128, np.float32))


def plain_pair(variant: str = "D", matrix: NDArray[Any] = JFIF) -> ColourPair:
    """The pair whose colours are those of `matrix` (JFIF's by default) and whose inverse undoes it but for
    rounding; the squashing is slight and uses all of a byte. Where training begins."""
    side, size = VARIANTS[variant]
    gain = 1.0 if size is None else (SIGMA + 127) / size
    halves = []
    for each, own in ((matrix, gain), (np.linalg.inv(matrix), 1 / gain)):
        weight = np.zeros((3, 3, side, side), np.float32)
        weight[:, :, side // 2, side // 2] = each
        sigma, gamma = np.full(3, SIGMA, np.float32), np.full(3, own, np.float32)
        halves.append(Half(weight, np.zeros(3, np.float32), sigma, gamma))
    return ColourPair(variant, halves[0], halves[1])


@dataclass(frozen=True)
class SeaOtter(Method):
    name = "seaotter"
    stage = "share"
    slot = "cut"
    paper = "SEAOTTER: Sensor Embedded Autoencoding with One-Time Transcode (2606.03940)"
    summary = "A sensor sends a learned latent, the cloud keeps a JPEG with learned colours and tables."
    system = 2

    channels: int = parameter(12, allowed=range(1, 65), help="latent channels that are sent")
    coder: str = parameter(
        "smallest",
        allowed=("smallest", "stored", "range", "jpeg-ls"),
        help="entropy coder of each scale; smallest tries all",
    )
    table: int = parameter(
        2, allowed=range(1, 9), help="which of the codec's tables the JPEG takes, 1 smallest files"
    )

    def encode(self, codec: Any, picture: U8) -> bytes:
        """What the sensor sends of a picture u8 [h, w, 3]; `codec` is a share._codec_pack.Codec."""
        found: bytes = codec.encode(picture, self.channels, self.coder)
        return found

    def transcode(self, codec: Any, stream: bytes) -> bytes:
        """The JPEG that the cloud keeps."""
        found: bytes = codec.transcode(stream, table=self.table)
        return found
