"""FRAPPE: the encoder is a strided convolution, the quantizer its formulas, the ONNX decoder PyTorch's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.formats.safetensors import write_safetensors
from haversack.models.vision._frappe_onnx import OnnxDecoder
from haversack.models.vision.frappe import (
    PATCHES,
    DecoderShape,
    Encoder,
    Scale,
    companded,
    encoder_of,
    expanded,
    grid_channels,
    on_grid,
)

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
from haversack.models.vision import frappe_torch  # noqa: E402


def encoder_drawn(patches=PATCHES[:10], seed=0):
    rng = np.random.default_rng(seed)
    scales = []
    for patch in dict.fromkeys(patches):
        count = patches.count(patch)
        weight = (rng.standard_normal((count, 3, patch, patch)) * 3 / patch).astype(np.float32)
        parts = (rng.normal(0, 2, count), rng.uniform(40, 150, count), rng.uniform(0.6, 1.4, count))
        scales.append(Scale(weight, *(part.astype(np.float32) for part in parts)))
    return Encoder(scales)


def module_of(scale):
    module = frappe_torch.Channels(len(scale.weight), scale.patch)
    with torch.no_grad():
        for name in ("weight", "bias", "sigma", "gamma"):
            getattr(module, name).copy_(torch.tensor(getattr(scale, name)))
    return module.eval()


def test_the_encoder_is_a_strided_convolution_and_a_quantizer():
    encoder = encoder_drawn()
    picture = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    x = torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    for found, scale in zip(encoder.encode(picture).maps, encoder.scales, strict=True):
        with torch.no_grad():
            expected = module_of(scale)(x)[0].numpy()
        apart = np.abs(found.astype(int) - expected)
        assert found.dtype == np.int8 and apart.max() <= 1 and np.mean(apart > 0) < 0.01


def test_sides_are_filled_up_with_the_edge():
    encoder = encoder_drawn()
    picture = np.random.default_rng(2).integers(0, 256, (33, 65, 3), np.uint8)
    whole = np.pad(picture, ((0, 31), (0, 31), (0, 0)), "edge")
    short, long = encoder.encode(picture), encoder.encode(whole)
    assert (short.height, short.width) == (33, 65)
    assert all(np.array_equal(a, b) for a, b in zip(short.maps, long.maps, strict=True))


def test_fewer_channels_are_the_first_of_more():
    encoder = encoder_drawn()
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoder.encode(picture)
    for count in range(1, len(encoder.patches) + 1):
        own, cut = encoder.encode(picture, count), whole.first(count)
        assert all(np.array_equal(a, b) for a, b in zip(own.maps, cut.maps, strict=True))


def test_companding_is_undone_but_for_its_spare():
    u = np.linspace(-400, 400, 4001).astype(np.float64)
    assert np.allclose(expanded(companded(u, 126.0), 126.0, spare=0.0), u, atol=1e-6)
    assert companded(np.array(126.0), 126.0) == pytest.approx(63.5, abs=1e-6)
    biased = expanded(companded(u, 126.0), 126.0, spare=0.5)
    assert np.all(np.abs(biased) <= np.abs(u) + 1e-9)  # only the companding's bias, towards zero
    assert np.abs(biased - u)[np.abs(u) < 40].max() < 0.3


def test_what_no_encoder_can_do_is_refused():
    encoder = encoder_drawn()
    grey = np.zeros((32, 32), np.uint8)
    for wrong in (grey, np.zeros((32, 32, 4), np.uint8), np.zeros((32, 32, 3), np.float32)):
        with pytest.raises(UserError, match="RGB"):
            encoder.encode(wrong)
    for count in (0, 11):
        with pytest.raises(UserError, match="channels"):
            encoder.encode(np.zeros((32, 32, 3), np.uint8), count)
    with pytest.raises(UserError, match="coarse to fine"):
        Encoder(encoder.scales[::-1])


@pytest.mark.parametrize("grid", [2, 8, 16])
def test_maps_on_one_grid(grid):
    patches = PATCHES[:13]
    rng = np.random.default_rng(4)
    maps = [
        rng.integers(-9, 9, (patches.count(p), 64 // p, 96 // p)).astype(np.int8)
        for p in dict.fromkeys(patches)
    ]
    found = on_grid(maps, tuple(dict.fromkeys(patches)), grid)
    tensors = [torch.tensor(one[None].astype(np.float32)) for one in maps]
    expected = frappe_torch.on_grid(tensors, tuple(dict.fromkeys(patches)), grid)[0].numpy()
    assert found.shape == (grid_channels(patches, grid), 64 // grid, 96 // grid)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("arch", ["C", "CC", "CTC"])
def test_the_decoder_without_pytorch_is_that_with_it(arch):
    torch.manual_seed(0)
    shape, patches = DecoderShape(8, 32, arch), PATCHES[:10]
    module = frappe_torch.Decoder(patches, shape).eval()
    tensors = {name: part.detach().numpy() for name, part in module.state_dict().items()}
    assert {name: part.shape for name, part in tensors.items()} == shape.expected(patches)
    stream = encoder_drawn().encode(np.random.default_rng(5).integers(0, 256, (96, 160, 3), np.uint8))
    with torch.no_grad():
        expected = module([torch.tensor(one[None].astype(np.float32)) for one in stream.maps])[0]
    found = OnnxDecoder(tensors, patches, shape).decode(stream)
    assert np.abs(found / 127.5 - 1 - expected.permute(1, 2, 0).numpy()).max() < 2e-3


def test_tiles_give_the_whole_picture(monkeypatch):
    torch.manual_seed(1)
    shape, patches = DecoderShape(8, 16, "CC"), PATCHES[:7]
    module = frappe_torch.Decoder(patches, shape)
    tensors = {name: part.detach().numpy() for name, part in module.state_dict().items()}
    decoder = OnnxDecoder(tensors, patches, shape)
    stream = encoder_drawn().encode(np.random.default_rng(6).integers(0, 256, (250, 330, 3), np.uint8))
    whole = decoder.decode(stream)
    monkeypatch.setattr("haversack.models.vision._frappe_onnx.TILE", 8)
    assert whole.shape == (250, 330, 3)
    assert np.abs(decoder.decode(stream) - whole).max() < 2e-3


def test_tensors_that_are_not_the_decoders_are_refused():
    shape, patches = DecoderShape(8, 16, "C"), PATCHES[:4]
    good = {n: np.zeros(s, np.float32) for n, s in shape.expected(patches).items()}
    for name, value in (("head.bias", None), ("head.bias", np.zeros(3)), ("paint.bias", np.full(3, np.nan))):
        bad = {**good, name: value}
        with pytest.raises(UserError, match=name):
            OnnxDecoder({k: v for k, v in bad.items() if v is not None}, patches, shape)
    for arch in ("", "X", "C" * 65):
        with pytest.raises(UserError, match="arch"):
            DecoderShape(8, 32, arch)
    with pytest.raises(UserError, match="decoder_dim"):
        DecoderShape(8, 40, "T")


def test_bits_of_a_wider_spread_cost_more():
    torch.manual_seed(2)
    narrow, wide = torch.randn(4, 2, 8, 8), 8 * torch.randn(4, 2, 8, 8)
    cost = [float(frappe_torch.laplace_bits(v).mean()) for v in (narrow, wide)]
    assert 2.0 < cost[1] - cost[0] < 4.0  # three bits for eight times the spread


def test_a_published_checkpoint_is_read(tmp_path):
    """merged.{n}.encoders.{s}.* and merged.{n}.decoder.*; ps, decoder_ps, decoder_dim, arch, n_trained."""
    from haversack.share._codec_pack import Codec

    encoder, shape = encoder_drawn(PATCHES[:7]), DecoderShape(8, 16, "C")
    tensors = {}
    for count in (4, 7):
        torch.manual_seed(count)
        module = frappe_torch.Decoder(PATCHES[:count], shape)
        for name, part in module.state_dict().items():
            tensors[f"merged.{count}.decoder.{name}"] = part.numpy()
        left = count
        for at, scale in enumerate(encoder.scales):
            if left <= 0:
                break
            for part in ("weight", "bias", "sigma", "gamma"):
                tensors[f"merged.{count}.encoders.{at}.{part}"] = getattr(scale, part)[:left]
            left -= len(scale.weight)
    write_safetensors(
        tmp_path / "model.safetensors",
        [(name, "f32", one.shape, one.astype("<f4").tobytes()) for name, one in tensors.items()],
    )
    config = {"ps": list(PATCHES[:7]), "decoder_ps": 8, "decoder_dim": 16, "arch": "C", "n_trained": 7}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    codec = Codec.open(tmp_path)
    assert codec.encoder.id == encoder.id and sorted(codec.decoders) == [4, 7]
    picture = np.random.default_rng(7).integers(0, 256, (40, 50, 3), np.uint8)
    assert codec.rebuild(codec.read(codec.encode(picture))).shape == (40, 50, 3)
    assert math.isclose(codec.encoder.scales[0].sigma[0], encoder.scales[0].sigma[0])
    with pytest.raises(UserError):
        encoder_of({"merged.4.encoders.1.weight": np.zeros((1, 3, 8, 8), np.float32)})
    del config["arch"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="arch"):
        Codec.open(tmp_path)
