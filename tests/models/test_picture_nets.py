"""Records, names and checkpoints of MobileNets, without PyTorch: published counts, published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from haversack.core.errors import DamagedFileError, UserError
from haversack.models.vision import _counts, _names, mobilenetv2, mobilenetv3, proxylessnas
from haversack.models.vision._folder import read_checkpoint, recognises, variants, write_checkpoint
from haversack.models.vision._record import PictureNet, channels_of

MODULES = (mobilenetv2, mobilenetv3, proxylessnas)
EVERY = [(module, variant) for module in MODULES for variant in module.VARIANTS]


def drawn(record: PictureNet, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Weights that keep maps of about one size through the network; variances above 0."""
    draw = np.random.default_rng(seed)
    made = {}
    for name, shape in record.tensors().items():
        if name.endswith("running_var") or name.endswith("norm.weight"):
            made[name] = draw.uniform(0.5, 1.5, shape)
        elif name.endswith((".bias", "running_mean")):
            made[name] = draw.normal(0, 0.2, shape)
        else:
            made[name] = draw.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    return {name: array.astype(np.float32) for name, array in made.items()}


def files(record: PictureNet, source: str, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """What `source` publishes of it: its names, a 1x1 convolution where it has one, counters of its norms."""
    names = _names.published(record, source)
    made = {}
    for ours, array in drawn(record, seed).items():
        name = names[ours]
        if source == "timm" and ours == "hidden.weight":
            array = array[..., None, None]
        made[name] = array
        if name.endswith("running_var"):
            made[name.replace("running_var", "num_batches_tracked")] = np.array(7, np.int64)
    return made


def timm_folder(path: Path, record: PictureNet, **config: Any) -> Path:
    path.mkdir()
    save_file(files(record, "timm"), path / "model.safetensors", {"format": "pt"})
    said = {
        "architecture": record.variant,
        "num_classes": record.classifier.outputs,
        "num_features": record.classifier.inputs,
        "pretrained_cfg": {
            "tag": "ra_in1k",
            "input_size": [3, record.size, record.size],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
        },
    }
    (path / "config.json").write_text(json.dumps(said | config))
    return path


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v3_large", 5_483_032),
        ("mobilenet_v3_small", 2_542_856),
        ("proxyless_mobile", 4_080_512),
        ("mobilenetv2_050", 1_968_680),
        ("mobilenetv2_140", 6_108_776),
        ("mobilenetv3_small_050", 1_593_224),
        ("mobilenetv3_small_075", 2_041_872),
        ("mobilenetv3_large_075", 3_993_528),
    ],
)
def test_parameters_are_the_published_ones(name: str, count: int) -> None:
    module, variant = variants()[name]
    assert module.record(variant).parameters() == count


@pytest.mark.parametrize(
    ("name", "millions"),
    [("mobilenet_v2", 300.8), ("mobilenet_v3_large", 216.6), ("mobilenet_v3_small", 56.5)],
)
def test_products_are_the_published_ones(name: str, millions: float) -> None:
    module, variant = variants()[name]
    assert sum(_counts.products(module.record(variant)).values()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_our_own_small_network_is_as_large_as_told() -> None:
    record = mobilenetv3.record("mobilenetv3_tiny", 5)
    assert 300_000 <= record.parameters() <= 600_000
    top = record.blocks[-3:]
    assert all(block.residual and block.squeeze for block in top)
    assert all(block.depthwise.inputs == 6 * block.inputs for block in top)


def test_channels_are_never_a_tenth_too_few() -> None:
    for width in np.arange(3, 400, 0.7):
        assert channels_of(width) % 8 == 0
        assert channels_of(width) >= 0.9 * width


@pytest.mark.parametrize(("module", "variant"), EVERY)
def test_a_record_is_whole(module: Any, variant: str) -> None:
    """Blocks fit one another, groups hold every tensor once, names of all sources are unlike each other."""
    record = module.record(variant, 12)
    inputs = record.stem.outputs
    for block in record.blocks:
        assert block.inputs == inputs
        inputs = block.project.outputs
    assert record.final.inputs == inputs
    assert sum(record.stages) == len(record.blocks)
    grouped = [name for names in record.groups().values() for name in names]
    assert grouped == list(record.tensors())
    for source in ("proxylessnas",) if module is proxylessnas else ("timm", "torchvision"):
        names = _names.published(record, source)
        assert len(set(names.values())) == len(record.tensors())
        assert _names.source_of(names.values()) == source


@pytest.mark.parametrize("variant", ["mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv3_tiny"])
def test_a_folder_of_timm_is_read(variant: str, tmp_path: Path) -> None:
    module, _ = variants()[variant]
    record = module.record(variant, 6)
    labels = ["a", "b", "c", "d", "e", "f"]
    folder = timm_folder(tmp_path / "model", record, label_names=labels)
    assert recognises(folder)
    found, tensors = read_checkpoint(folder)
    assert (found.variant, found.labels, found.size) == (variant, tuple(labels), record.size)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for name, array in drawn(record).items():
        assert np.array_equal(tensors[name], array), name


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
@pytest.mark.parametrize("how", ["file", "folder", "config"])
def test_files_of_torchvision_are_read(name: str, how: str, tmp_path: Path) -> None:
    """With a config or told by shapes; an own number of classes too."""
    module, variant = variants()[name]
    record = module.record(variant, 9, source="torchvision")
    path = tmp_path / "model.safetensors"
    save_file(files(record, "torchvision"), path)
    if how == "config":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 9}))
    assert recognises(path if how == "file" else tmp_path)
    found, tensors = read_checkpoint(path if how == "file" else tmp_path)
    assert found == record
    assert all(np.array_equal(tensors[ours], array) for ours, array in drawn(record).items())


def test_files_of_proxylessnas_are_read(tmp_path: Path) -> None:
    """With the numbers that the search left, and behind the `module.` of data-parallel training."""
    record = proxylessnas.record("proxylessnas_mobile", 10)
    numbers = [*range(3), *range(5, 22)]
    renamed = {}
    for name, array in files(record, "proxylessnas").items():
        head, _, rest = name.partition(".")
        if head == "blocks":
            number, _, rest = rest.partition(".")
            name = f"blocks.{numbers[int(number)]}.{rest}"
        renamed[f"module.{name}"] = array
    save_file(renamed, tmp_path / "model.safetensors")
    found, tensors = read_checkpoint(tmp_path)
    assert found == record
    assert all(np.array_equal(tensors[ours], array) for ours, array in drawn(record).items())


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_is_read_as_it_is(kind: str, tmp_path: Path) -> None:
    record = mobilenetv3.record("mobilenetv3_small_050", 4)
    wide = files(record, "timm")
    half = {}
    for name, array in wide.items():
        whole = array.dtype == np.int64
        half[name] = array if whole else array.astype(np.float16)
    if kind == "f16":
        save_file(half, tmp_path / "model.safetensors")
        expected = {name: array.astype(np.float32) for name, array in half.items()}
    else:
        torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
        from safetensors.torch import save_file as save_torch

        halves = {name: torch.from_numpy(array).bfloat16() for name, array in wide.items() if array.ndim}
        save_torch(halves, tmp_path / "model.safetensors")
        expected = {name: tensor.float().numpy() for name, tensor in halves.items()}
    _, tensors = read_checkpoint(tmp_path)
    for ours, name in _names.published(record, "timm").items():
        assert np.array_equal(tensors[ours].ravel(), expected[name].ravel())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = mobilenetv3.record("mobilenetv3_tiny").with_classes(("dog", "frog"))
    tensors = drawn(record)
    write_checkpoint(tmp_path / "made", record, tensors)
    found, again = read_checkpoint(tmp_path / "made")
    assert found == record
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def refused(path: Path, kind: type[UserError] = UserError) -> str:
    with pytest.raises(kind) as caught:
        read_checkpoint(path)
    return str(caught.value)


def test_pickles_are_refused_with_the_command_that_converts(tmp_path: Path) -> None:
    for name in ("mobilenet_v2-b0353104.pth", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"\x80\x02}")
        said = refused(tmp_path / name)
        assert "python -c" in said
        assert "model.safetensors" in said
    assert "python -c" in refused(tmp_path)


def test_unknown_and_unfit_configs_are_refused(tmp_path: Path) -> None:
    record = mobilenetv2.record("mobilenetv2_035", 3)
    said = refused(timm_folder(tmp_path / "a", record, architecture="mobilenetv2_100d"))
    assert "did you mean mobilenetv2_100?" in said
    said = refused(timm_folder(tmp_path / "b", record, architecture="tf_mobilenetv3_small_100"))
    assert "TensorFlow" in said
    said = refused(timm_folder(tmp_path / "c", record, model_args={"output_stride": 8}))
    assert "output_stride" in said
    said = refused(timm_folder(tmp_path / "d", record, pretrained_cfg={"input_size": [1, 224, 224]}))
    assert "input_size" in said
    said = refused(timm_folder(tmp_path / "e", record, pretrained_cfg={"std": [0.2, 0.0, 0.2]}))
    assert "std" in said
    said = refused(timm_folder(tmp_path / "f", record, num_classes=0))
    assert "num_classes" in said


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    record = mobilenetv2.record("mobilenetv2_035", 3)
    whole = files(record, "timm")
    config = {"architecture": "mobilenetv2_035", "num_classes": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = tmp_path / "model.safetensors"

    save_file({name: array for name, array in whole.items() if name != "blocks.1.0.bn2.bias"}, path)
    assert "blocks.1.0.bn2.bias is missing" in refused(tmp_path, DamagedFileError)
    save_file(whole | {"conv_head.weight": whole["conv_head.weight"][:, :8].copy()}, path)
    assert "conv_head.weight is [1280, 8, 1, 1]" in refused(tmp_path, DamagedFileError)
    save_file(whole | {"classifier.bias": np.array([0, np.nan, 0], np.float32)}, path)
    assert "classifier.bias holds weights that are not finite" in refused(tmp_path)
    save_file(whole | {"classifier.bias": np.zeros(3, np.int32)}, path)
    assert "stored as i32" in refused(tmp_path)
    save_file(whole | {"blocks.9.0.conv_pw.weight": np.zeros((1, 1, 1, 1), np.float32)}, path)
    assert "blocks.9.0.conv_pw.weight, which mobilenetv2_035 has not" in refused(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "model.safetensors" in refused(tmp_path, DamagedFileError)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, path)
    assert not recognises(tmp_path)
    assert "no network known here" in refused(tmp_path)
    record = mobilenetv2.mobilenetv2(0.6, 3)
    save_file(files(record, "torchvision"), path)
    assert recognises(tmp_path)
    assert "shapes of no network known here" in refused(tmp_path)


def test_folders_of_language_models_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not recognises(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "nowhere")


def test_what_the_way_back_keeps_by_the_formula() -> None:
    """A block of stride 1, as many channels out as in, widened by six: 26.375 and 14.375 times its input."""
    from haversack.train.parameters.mobiletl import MobileTL, mobiletl_units, standard_units

    record = mobilenetv2.record("mobilenetv2_100", 10)
    block = next(one for one in record.blocks if one.residual)
    side, rows = 16, 4
    unit = rows * block.inputs * side * side * 4
    for method, units in (
        (MobileTL(blocks=17, act="exact", inner_norm="full"), standard_units(6)),
        (MobileTL(blocks=17), mobiletl_units(6)),
    ):
        way = method.way(record)
        statistics = sum(
            2 * 4 * layer.outputs
            for layer in block.layers()
            if layer.name in way.batch_norms  # type: ignore[union-attr]
        )
        assert _counts.kept_by_block(block, way, rows, side) == units * unit + statistics
