"""The trainings of a codec: proxies equal their definitions, gradients flow, a short run learns and resumes
nothing half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.share import codecs as drawn

from haversack.core.errors import UserError
from haversack.formats.tabled_jpeg import read_jpeg, write_jpeg
from haversack.models.vision.frappe import PATCHES, DecoderShape
from haversack.share import seaotter
from haversack.share._codec_pack import Codec
from haversack.share._codec_training import finetune, train_encoder, train_sandwich
from haversack.share.seaotter import plain_pair

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
from haversack.share import _codec_finetune_torch as tuning  # noqa: E402
from haversack.share import _codec_proxy_torch as proxy  # noqa: E402
from haversack.share import _codec_sandwich_torch as sandwich  # noqa: E402
from haversack.share import _codec_teacher_torch as teaching  # noqa: E402
from haversack.share import _codec_train_torch as learning  # noqa: E402


def pictures(count: int = 4, side: int = 96) -> list[Any]:
    return [drawn.picture(side, side + 32, seed) for seed in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures that a glance tells apart."""
    root = tmp_path_factory.mktemp("pictures")
    for name, shift in (("blue", 2), ("red", 0)):
        (root / name).mkdir()
        for seed in range(3):
            one = drawn.picture(80, 90, seed).astype(int)
            one[..., shift] += 70
            Image.fromarray(np.clip(one, 0, 255).astype(np.uint8)).save(root / name / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    goal = tmp_path_factory.mktemp("codec") / "small.pack"
    record = train_encoder(
        data, goal, channels=7, counts=(4, 7), steps=25, channel_steps=3, sandwich_steps=4, crop=64, width=16,
        arch="C",
    )  # fmt: skip
    assert record["n_trained"] == [4, 7] and record["pictures"] == 6
    return goal


def test_counted_bits_and_blocks_equal_their_definitions():
    planes = plain_pair().to_planes(drawn.picture(32, 48))
    x = torch.tensor(planes).permute(2, 0, 1)[None].double()
    table = np.random.default_rng(0).integers(2, 40, (3, 8, 8))
    q = torch.tensor(table, dtype=torch.float64)
    back, bits = proxy.through_jpeg(x, q, training=False)
    assert float(bits) == pytest.approx(seaotter.proxy_bpp(planes, table), rel=1e-9)
    z = proxy.coefficients(x)[0].flatten(3).numpy()
    assert np.allclose(z, seaotter.dct_blocks(planes.transpose(2, 0, 1)), atol=1e-9)
    assert torch.allclose(proxy.planes_of(proxy.coefficients(x)), x, atol=1e-9)
    real = read_jpeg(write_jpeg(planes, table, "0" * 16)).planes
    apart = np.abs(back[0].permute(1, 2, 0).numpy() - real)
    assert apart.mean() < 0.6 and np.quantile(apart, 0.99) <= 2


def test_the_module_of_colours_is_what_files_have():
    pair = plain_pair("D")
    module = proxy.Colours(pair).eval()
    assert module.pair().id == pair.id
    picture = drawn.picture(24, 40)
    x = torch.tensor(picture).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        planes = module.to_planes(x).round()
        back = module.to_pictures(planes)
    ours = pair.to_planes(picture)
    apart = np.abs(planes[0].permute(1, 2, 0).numpy() - ours)
    assert apart.max() <= 1 and apart.mean() < 0.02
    theirs = pair.to_picture(np.ascontiguousarray(planes[0].permute(1, 2, 0).numpy().astype(np.uint8)))
    assert np.abs(back[0].permute(1, 2, 0).numpy() - theirs).max() <= 1


def test_gradients_reach_every_part():
    module, tables = proxy.Colours(plain_pair()), proxy.Tables(1)
    assert np.allclose(tables().detach(), 8, atol=1e-4)
    x = torch.tensor(drawn.picture(32, 32)).permute(2, 0, 1)[None].float().requires_grad_()
    back, bits = proxy.through_jpeg(module.to_planes(x), tables()[0], training=True)
    ((module.to_pictures(back) - x).square().mean() + bits.mean()).backward()
    parts = [x, *module.parameters(), *tables.parameters()]
    assert all(part.grad is not None and part.grad.isfinite().all() for part in parts)
    assert all(float(part.grad.abs().sum()) > 0 for part in parts)


def test_training_lowers_the_error_and_is_deterministic():
    plan = learning.Plan(
        patches=PATCHES[:7],
        counts=(7,),
        shape=DecoderShape(8, 16, "C"),
        channel_steps=3,
        decoder_steps=40,
        crop=64,
    )
    found = learning.train_channels(pictures(), plan)
    again = learning.train_channels(pictures(), plan)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(found, again, strict=True))
    decoder = learning.train_decoders(found, pictures(), plan)[7]
    x = learning.crops(pictures(), 16, 64, np.random.default_rng(3))
    with torch.no_grad():
        error = float(((decoder(learning.codes_of(found, x, 7)) - x) ** 2).mean())
    assert error < 0.35 * float(x.var())


def test_a_bit_that_costs_more_gives_shorter_streams():
    lengths = []
    for bit in (0.02, 4.0):
        plan = learning.Plan(patches=PATCHES[:7], channel_steps=30, bit=bit)
        encoder = learning.encoder_of(learning.train_channels(pictures(), plan))
        lengths.append(sum(float(np.abs(one).mean()) for one in encoder.encode(pictures()[0]).maps))
    assert lengths[1] < 0.8 * lengths[0]


def test_the_sandwich_learns_and_is_calibrated():
    made = sandwich.train_sandwich(pictures(), 30, crop=64, batch=2)
    stored = made.tables.stored()
    assert stored.shape == (3, 3, 8, 8) and stored.min() >= 1
    means = stored.reshape(3, -1).mean(1)
    assert means[0] > means[1] > means[2]  # dearer bits, coarser tables
    x = learning.crops(pictures(), 8, 64, np.random.default_rng(1))
    counted = np.array(sandwich.counted_bpp(made, x, 1)) * made.alpha
    pair = made.colours.pair()
    real = [sandwich.real_bpp(pair.to_planes(one), stored[1]) for one in sandwich.bytes_of(x)]
    assert np.mean(counted) == pytest.approx(np.mean(real), rel=0.3)


def test_from_pictures_to_a_codec_and_back(trained: Path, data: Path, tmp_path: Path):
    codec = Codec.open(trained)
    picture = np.asarray(Image.open(data / "red" / "0.png"))
    sent = codec.encode(picture)
    rebuilt = codec.rebuild(codec.read(sent))
    assert np.mean((rebuilt.astype(float) - picture) ** 2) < 0.6 * np.var(picture)
    assert sorted(codec.decoders) == [4, 7] and len(codec.tables) == 3
    record = train_sandwich(str(trained), data, tmp_path / "b.pack", steps=3, crop=64)
    other = Codec.open(tmp_path / "b.pack")
    assert record["pair"] == other.pair.id != codec.pair.id
    assert other.encode(picture) == sent


def test_tuning_keeps_the_sensor_and_helps_the_task(trained: Path, data: Path, tmp_path: Path):
    goal = tmp_path / "task.pack"
    record = finetune(
        str(trained), data, goal, channels=4, task="colour", steps=30, teacher_steps=30, crop=64, bit=0.02
    )
    made, codec = Codec.open(goal), Codec.open(trained)
    assert record["task"] == made.task == "colour" and list(made.decoders) == [4]
    picture = np.asarray(Image.open(data / "blue" / "1.png"))
    assert made.encode(picture, 4) == codec.encode(picture, 4)
    kept = made.transcode(codec.encode(picture, 7))  # a stream of the field, longer than the task needs
    assert read_jpeg(kept).task == "colour" and made.consumer().decode(kept).shape == picture.shape


def test_losses_of_the_three_tasks():
    x = torch.rand(2, 3, 8, 8)
    segment = tuning.segmentation_loss(lambda pictures: torch.cat([pictures, pictures * 2], 1))
    labels = torch.full((2, 8, 8), 255)
    labels[0] = 0
    assert float(segment(x, x, labels)) < float(segment(torch.rand(2, 3, 8, 8), x, labels)) + 0.5
    embed = tuning.embedding_loss(lambda pictures: (pictures.flatten(2), pictures.mean((2, 3))))
    assert float(embed(x, x, torch.ones(2, 3))) == pytest.approx(0, abs=1e-6)
    assert float(embed(-x, x, torch.ones(2, 3))) == pytest.approx(2, abs=1e-5)
    network = teaching.SmallClassifier(3).eval()
    task = tuning.classification_loss(network)
    assert float(task(x, x, torch.tensor([0, 2])).detach()) > 0


def test_what_cannot_be_learned_from_is_refused(data: Path, tmp_path: Path, trained: Path):
    goal = tmp_path / "x.pack"
    with pytest.raises(UserError, match="crop"):
        train_encoder(data, goal, crop=100)
    with pytest.raises(UserError, match="lengths"):
        train_encoder(data, goal, counts=(6, 3))
    with pytest.raises(UserError, match="channels"):
        train_encoder(data, goal, channels=17)
    with pytest.raises(UserError, match="256 pixels"):
        train_encoder(data, goal, crop=256)
    with pytest.raises(UserError, match="two classes"):
        finetune(str(trained), data / "red", goal, crop=64)
    with pytest.raises(UserError, match="channels=5"):
        finetune(str(trained), data, goal, channels=5, crop=64)
    assert not goal.exists()
