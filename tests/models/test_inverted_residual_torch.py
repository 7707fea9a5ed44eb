"""The PyTorch module of MobileNets equals a plain pass by the publishers' own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

from tests.models import picture_oracles as oracles  # noqa: E402
from tests.models.test_picture_nets import files  # noqa: E402

from haversack.core.errors import UserError  # noqa: E402
from haversack.models.vision import mobilenetv2, mobilenetv3, proxylessnas  # noqa: E402
from haversack.models.vision._folder import read_checkpoint  # noqa: E402
from haversack.models.vision._inverted_residual_torch import PictureModule  # noqa: E402

PICTURES = np.random.default_rng(5).normal(0, 1, (2, 3, 40, 40)).astype(np.float32)
V2_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
LARGE_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1)
SMALL_STRIDES = (2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1)


def ours(tmp_path: Path, tensors: dict[str, Any]) -> Any:
    save_file(tensors, tmp_path / "model.safetensors")
    record, arrays = read_checkpoint(tmp_path)
    module = PictureModule(record)
    module.load(arrays)
    with torch.no_grad():
        return module(torch.from_numpy(PICTURES)).numpy()


def same(found: Any, expected: Any) -> None:
    """To a few f32 roundings of the largest logit; and the logits say something."""
    assert expected.std() > 1e-3
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_timm_v2(tmp_path: Path) -> None:
    tensors = files(mobilenetv2.record("mobilenetv2_035", 7), "timm")
    expected = oracles.timm(tensors, oracles.TIMM_V2, PICTURES, 1e-5, third=False)
    same(ours(tmp_path, tensors), expected)


@pytest.mark.parametrize(
    ("variant", "stages"),
    [
        ("mobilenetv3_small_050", oracles.TIMM_V3_SMALL),
        ("mobilenetv3_small_100", oracles.TIMM_V3_SMALL),
        ("mobilenetv3_large_075", oracles.TIMM_V3_LARGE),
    ],
)
def test_timm_v3(variant: str, stages: tuple[str, ...], tmp_path: Path) -> None:
    tensors = files(mobilenetv3.record(variant, 7), "timm")
    same(ours(tmp_path, tensors), oracles.timm(tensors, stages, PICTURES, 1e-5, third=True))


def test_torchvision_v2(tmp_path: Path) -> None:
    tensors = files(mobilenetv2.record("mobilenetv2_100", 7), "torchvision")
    same(ours(tmp_path, tensors), oracles.torchvision_v2(tensors, V2_STRIDES, PICTURES))


@pytest.mark.parametrize(
    ("variant", "strides", "relus"),
    [("mobilenetv3_large_100", LARGE_STRIDES, 6), ("mobilenetv3_small_100", SMALL_STRIDES, 3)],
)
def test_torchvision_v3(variant: str, strides: tuple[int, ...], relus: int, tmp_path: Path) -> None:
    tensors = files(mobilenetv3.record(variant, 7, source="torchvision"), "torchvision")
    same(ours(tmp_path, tensors), oracles.torchvision_v3(tensors, strides, relus, PICTURES))


def test_proxylessnas(tmp_path: Path) -> None:
    tensors = files(proxylessnas.record("proxylessnas_mobile", 7), "proxylessnas")
    same(ours(tmp_path, tensors), oracles.proxylessnas(tensors, tuple(range(20)), PICTURES))


def test_a_module_has_the_record_s_tensors_in_its_order() -> None:
    record = mobilenetv3.record("mobilenetv3_tiny", 5)
    module = PictureModule(record)
    assert {name: array.shape for name, array in module.arrays().items()} == record.tensors()
    assert list(module.tensors()) == list(record.tensors())
    assert sum(value.numel() for value in module.parameters()) == record.parameters()


def test_arrays_are_the_module_s_memory() -> None:
    module = PictureModule(mobilenetv3.record("mobilenetv3_tiny", 5))
    module.initialize(3)
    arrays = module.arrays()
    arrays["classifier.bias"][:] = 7
    arrays["final.norm.running_mean"][:] = 3
    assert (module.classifier.bias == 7).all()
    assert (module.final.norm.running_mean == 3).all()


def test_initial_weights_follow_the_seed() -> None:
    record = mobilenetv3.record("mobilenetv3_tiny", 5)
    one, same_again, other = PictureModule(record), PictureModule(record), PictureModule(record)
    one.initialize(1)
    same_again.initialize(1)
    other.initialize(2)
    for name, array in one.arrays().items():
        assert np.array_equal(array, same_again.arrays()[name])
    assert not np.array_equal(one.arrays()["stem.conv.weight"], other.arrays()["stem.conv.weight"])


def test_a_pass_may_begin_above_blocks() -> None:
    module = PictureModule(mobilenetv3.record("mobilenetv3_tiny", 5))
    module.initialize(0)
    with torch.no_grad():
        x = torch.from_numpy(PICTURES)
        whole = module(x)
        for start in range(1, 10):
            assert torch.equal(module(module.maps(x, 0, start), start), whole)


def test_pictures_are_scaled_as_the_config_says() -> None:
    module = PictureModule(mobilenetv3.record("mobilenetv3_tiny", 5))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    found = module.normed(pictures).numpy()
    mean, std = np.array(module.record.mean), np.array(module.record.std)
    expected = ((pictures / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(found, expected, atol=1e-6)


def test_what_is_not_float_is_refused() -> None:
    module = PictureModule(mobilenetv3.record("mobilenetv3_tiny", 5))
    with pytest.raises(UserError, match=r"torch\.uint8"):
        module(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
