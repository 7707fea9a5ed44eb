"""MobileNets as networks that learn: the protocol's promises, what a step keeps, baselines, TinyTL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

from tests.models.test_picture_nets import drawn, files  # noqa: E402

from haversack.core import index  # noqa: E402
from haversack.core.errors import UserError  # noqa: E402
from haversack.models.vision import mobilenetv2, mobilenetv3  # noqa: E402
from haversack.models.vision._folder import write_checkpoint  # noqa: E402
from haversack.models.vision._inverted_residual_torch import PictureModule  # noqa: E402
from haversack.models.vision._record import PictureNet  # noqa: E402
from haversack.train._network import (  # noqa: E402
    Batch,
    Features,
    Network,
    Pictures,
    Slice,
    head_of,
    identity,
)
from haversack.train._slots import Settings  # noqa: E402
from haversack.train.networks._open import kind_of, open_network  # noqa: E402
from haversack.train.networks.mobilenet_torch import PictureNetwork  # noqa: E402
from haversack.train.parameters.tinytl import TinyTL, lite_residual  # noqa: E402
from haversack.train.parameters.tinytl_torch import means  # noqa: E402

TINY = mobilenetv3.record("mobilenetv3_tiny").with_classes(("a", "b", "c", "d", "e"))
SECOND = mobilenetv2.record("mobilenetv2_035").with_classes(("a", "b", "c"))
CHOICES = (
    *("all", "all:blocks=4", "head", "bias", "bias:blocks=5", "mobiletl", "mobiletl:blocks=9"),
    *("mobiletl:blocks=2,act=exact,inner_norm=full", "mobiletl:blocks=2,last_norm=frozen,se=frozen"),
    *("tinytl", "tinytl:blocks=3"),
)


def network_of(record: PictureNet = TINY, seed: int = 0) -> PictureNetwork:
    return PictureNetwork.of("small", record, drawn(record, seed))


def batch_of(rows: int = 8, size: int = 32, classes: int = 3) -> Batch:
    draw = np.random.default_rng(4)
    inputs = draw.integers(0, 256, (rows, size, size, 3), np.uint8)
    return Batch(inputs, draw.integers(0, classes, rows))


def prepared(network: Any, choice: str, seed: int = 0) -> Any:
    return index.create("train", "parameters", choice).prepare(network, seed)  # type: ignore[attr-defined]


def stepper_of(network: Any, learned: Any, rows: int = 8) -> Any:
    gradient = index.create("train", "gradient", "backprop:rule=adam")
    return gradient.begin(network, learned, Settings(10, rows))  # type: ignore[attr-defined]


def test_it_is_a_network() -> None:
    network = network_of()
    assert isinstance(network, Network)
    assert network.form == Pictures(32, 32)
    assert list(network.blocks) == ["stem", *(f"blocks.{n}" for n in range(9)), "final", "classifier"]
    assert [name for names in network.blocks.values() for name in names] == list(network.tensors())
    assert head_of(network) == ("classifier.weight", "classifier.bias")
    roles = network.roles()
    assert roles["stem.norm.weight"] == "scale"
    assert roles["stem.norm.bias"] == roles["blocks.8.squeeze.reduce.bias"] == "bias"
    assert roles["stem.norm.running_var"] == "statistic"
    assert roles["hidden.weight"] == roles["blocks.8.squeeze.expand.weight"] == "weight"


def test_who_writes_into_its_arrays_changes_it() -> None:
    network, batch = network_of(), batch_of()
    before = network.logits(batch.inputs)
    network.tensors()["classifier.bias"][1] += 2
    assert np.allclose(network.logits(batch.inputs) - before, [0, 2, 0, 0, 0], atol=1e-5)


def test_folders_and_files_are_opened_by_their_kind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ours", TINY, drawn(TINY))
    save_file(files(SECOND, "torchvision"), tmp_path / "their.safetensors")
    assert kind_of(tmp_path / "ours") == kind_of(tmp_path / "their.safetensors") == "mobilenet"
    network = open_network(tmp_path / "ours")
    assert network.classes == TINY.labels
    assert identity(network) == identity(network_of())
    assert open_network(tmp_path / "their.safetensors").classes is None


def test_a_new_head_follows_its_seed() -> None:
    found = []
    for seed in (1, 1, 2):
        network = network_of()
        network.new_head(("x", "y"), seed)
        found.append(network.tensors()["classifier.weight"].copy())
    assert network.classes == ("x", "y")
    assert network.logits(batch_of().inputs).shape == (8, 2)
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_passes_forward_change_nothing() -> None:
    network, batch = network_of(), batch_of()
    prepared(network, "mobiletl")
    before = identity(network)
    network.loss(batch)
    network.logits(batch.inputs)
    assert identity(network) == before


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_s_promises(choice: str) -> None:
    """At first nothing changes; what is kept is what was planned, to the byte; a step changes what learns and
    what moves, and no more; ten steps on eight pictures learn them."""
    network, batch = network_of(), batch_of(classes=5)
    before = network.logits(batch.inputs)
    learned = prepared(network, choice)
    assert np.allclose(network.logits(batch.inputs), before, atol=1e-4 * np.abs(before).max())
    held = {name: array.copy() for name, array in network.tensors().items()}
    network.gradients(batch, learned.wanted)
    assert network.saved_nbytes == dict(network.plan(learned.wanted, 8))["saved for the way back"]
    stepper = stepper_of(network, learned)
    losses = [stepper.step(batch, 2e-3) for _ in range(10)]
    changed = {name for name, array in network.tensors().items() if not np.array_equal(array, held[name])}
    assert changed == {*learned.wanted, *learned.moved}
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("choice", ["mobiletl", "tinytl", "all:blocks=3"])
def test_preparing_anew_is_the_same(choice: str) -> None:
    """On the base again, and after another method."""
    one, other = network_of(), network_of()
    prepared(other, "mobiletl:blocks=5,act=exact,inner_norm=full")
    first, second = prepared(one, choice, 3), prepared(other, choice, 3)
    if choice != "all:blocks=3":
        assert first == second
    assert {name: array.shape for name, array in one.tensors().items()} == {
        name: array.shape for name, array in other.tensors().items()
    }
    assert identity(one) == identity(other)


def test_gradients_are_those_of_differences() -> None:
    """Of a few numbers of each kind, with fixed statistics; the float loss bounds how close."""
    network, batch = network_of(), batch_of(classes=5)
    wanted = dict.fromkeys(["classifier.bias", "hidden.weight", "blocks.8.project.norm.bias"])
    _, found = network.gradients(batch, wanted)
    for name, gradient in found.items():
        place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        array, step = network.tensors()[name], 1e-2
        array[place] += step
        above = network.loss(batch)
        array[place] -= 2 * step
        below = network.loss(batch)
        array[place] += step
        assert (above - below) / (2 * step) == pytest.approx(gradient[place], rel=0.05), name


def test_a_part_of_a_tensor_may_learn() -> None:
    network, batch = network_of(), batch_of(classes=5)
    part = Slice(0, (1, 3))
    _, whole = network.gradients(batch, {"hidden.weight": None})
    _, some = network.gradients(batch, {"hidden.weight": part})
    assert np.array_equal(some["hidden.weight"], whole["hidden.weight"][[1, 3]])


def test_maps_below_may_be_made_beforehand() -> None:
    """The same loss, the same gradients; maps that come in are the caller's and do not count as kept."""
    network, batch = network_of(), batch_of(classes=5)
    learned = prepared(network, "mobiletl:blocks=3")
    upper, maps = network.above(6), network.maps(batch.inputs, 6)
    assert upper.form == Features((48, 4, 4))
    loss, found = network.gradients(batch, learned.wanted)
    again, same = upper.gradients(Batch(maps, batch.labels), learned.wanted)
    assert again == pytest.approx(loss, rel=1e-5)
    for name in found:
        assert np.allclose(found[name], same[name], atol=1e-5 * np.abs(found[name]).max())
    assert network.saved_nbytes - upper.saved_nbytes == maps.nbytes
    assert upper.saved_nbytes == dict(upper.plan(learned.wanted, 8))["saved for the way back"]


def test_one_row_and_batch_statistics_do_not_go_together() -> None:
    network = network_of()
    learned = prepared(network, "mobiletl:blocks=2")
    with pytest.raises(UserError, match="a step of one row") as caught:
        network.gradients(batch_of(rows=1), learned.wanted)
    assert caught.value.nearest == 2
    learned = prepared(network, "mobiletl:blocks=2,last_norm=frozen")
    network.gradients(batch_of(rows=1), learned.wanted)


def test_methods_of_these_networks_refuse_others() -> None:
    class Other:
        name = "other"

    for choice in ("mobiletl", "tinytl"):
        with pytest.raises(UserError, match="no inverted residual blocks"):
            prepared(Other(), choice)
        method: Any = index.create("train", "parameters", choice)
        assert method.offers(Other()) == ()
        assert all(prepared(network_of(), offer).wanted for offer in method.offers(network_of()))
    with pytest.raises(UserError, match="blocks=12 is not possible"):
        prepared(network_of(), "tinytl:blocks=12")


def test_a_folder_of_pictures_becomes_a_delta_that_applies(tmp_path: Path) -> None:
    """From a folder in timm's form to a delta of what changed, laid over the base and taken away again."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (pip install haversack[vision])")
    from haversack.train._delta import apply_delta, read_delta
    from haversack.train.fit_labels import Rows, Wish, fit_labels

    module = PictureModule(TINY)
    module.initialize(0)
    write_checkpoint(tmp_path / "base", TINY, module.arrays())
    draw = np.random.default_rng(1)
    for number, name in enumerate(("red", "green", "blue")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for index_ in range(12):
            picture = draw.integers(0, 90, (40, 50, 3), np.uint8)
            picture[..., number] += 150
            image.fromarray(picture).save(folder / f"{index_}.png")
    wish = Wish(parameters="mobiletl:blocks=2,last_norm=frozen", epochs=6, batch=8, rate=3e-3, threads=1)
    rows = Rows(tmp_path / "pictures", head="new")
    done = fit_labels(tmp_path / "base", rows, tmp_path / "colours.delta", wish)
    assert done is not None
    assert done.classes == ("blue", "green", "red")
    assert done.saved.planned == done.saved.measured
    assert done.after.accuracy > 0.9
    delta = read_delta(tmp_path / "colours.delta")
    tops = ("blocks.7", "blocks.8", "final", "hidden", "classifier")
    assert all(name.startswith(tops) for name in delta.values)
    network = open_network(tmp_path / "base")
    base = identity(network)
    apply_delta(network, delta)
    assert network.classes == done.classes
    assert identity(network) != base
    assert identity(open_network(tmp_path / "base")) == base


# TinyTL


def test_what_learns_of_tinytl() -> None:
    way = TinyTL(blocks=3).way(TINY)
    assert set(way.beside) == {"blocks.6", "blocks.7", "blocks.8"}
    own = {name for name in way.learned if ".beside." not in name}
    assert own <= {name for name in TINY.tensors() if name.endswith(".bias")} | {"classifier.weight"}
    assert all(norm.split(".")[2] == "beside" for norm in way.batch_norms)


def test_lite_residuals_fit_their_maps() -> None:
    for record, size in ((TINY, 32), (SECOND, 224)):
        side = record.stem.map_after(size)
        for block in record.blocks:
            branch = lite_residual(block, side)
            assert branch.first.kernel == min(5, side // branch.pool - (side // branch.pool + 1) % 2)
            assert branch.first.groups == 2
            assert branch.second.outputs == block.project.outputs
            side = block.depthwise.map_after(side)
    assert lite_residual(TINY.blocks[8], 1).pool == 1


def test_means_of_squares() -> None:
    x = torch.randn(2, 3, 7, 7)
    assert torch.allclose(means(x, 2), torch.nn.functional.avg_pool2d(x, 2), atol=1e-6)
    assert means(x, 1) is x


def test_tinytl_keeps_less_than_learning_the_same_blocks() -> None:
    network, batch = network_of(), batch_of()
    kept = {}
    for choice in ("tinytl:blocks=5", "mobiletl:blocks=5,act=exact,inner_norm=full"):
        network.gradients(batch, prepared(network, choice).wanted)
        kept[choice] = network.saved_nbytes
    ours, plain = kept.values()
    assert ours < 0.6 * plain
