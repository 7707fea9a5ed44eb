"""Int8 networks in zip-pickles: the real ones, and small ones as numpy's own pickles write them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.graph.nets import data

from haversack.core.errors import DamagedFileError
from haversack.formats._plain_pickle import Refused, plain_values
from haversack.formats.mcu_pickle import is_mcu_file, network_of, read_mcu
from haversack.models.graph import Machine, load_mcu


def layer(
    random: np.random.Generator,
    outputs: int,
    inputs: int,
    kernel: int = 1,
    stride: int = 1,
    depthwise: bool = False,
) -> dict[str, Any]:
    shape = (outputs, 1 if depthwise else inputs, kernel, kernel)
    return {
        "in_channel": inputs,
        "in_shape": 8,
        "kernel_size": (kernel, kernel),
        "stride": stride,
        "groups": inputs if depthwise else 1,
        "depthwise": depthwise,
        "act": None,
        "params": {
            "weight": random.integers(-127, 128, shape).astype(np.int8),
            "bias": random.integers(-500, 500, outputs).astype(np.int32),
            "x_scale": 0.05,
            "x_zero": 3,
            "y_scale": 0.05,
            "y_zero": 3,
            "w_scales": random.uniform(0.002, 0.01, outputs).astype(np.float32),
        },
    }


def small(seed: int = 0) -> dict[str, Any]:
    """A network of two blocks, the second with a residual."""
    random = np.random.default_rng(seed)
    first = layer(random, 4, 3, 3, 2)
    blocks = [
        {"pointwise1": None, "depthwise": layer(random, 4, 4, 3, 1, True), "pointwise2": layer(random, 6, 4),
         "residual": None, "se": None},
        {"pointwise1": layer(random, 8, 6), "depthwise": layer(random, 8, 8, 3, 1, True),
         "pointwise2": layer(random, 6, 8),
         "residual": {"params": {"x_scale": 0.05, "x_zero": 3, "y_scale": 0.05, "y_zero": 3}}, "se": None},
    ]  # fmt: skip
    return {"first_conv": first, "blocks": blocks, "feature_mix": None, "classifier": layer(random, 5, 6)}


def packed(content: bytes, name: str = "archive/data.pkl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    path.write_bytes(packed(pickle.dumps(content, protocol)))
    return path


@pytest.mark.parametrize("name", ["mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3"])
def test_the_real_files_are_read_as_numpy_reads_them(name: str) -> None:
    path = data("models", "mcu", f"{name}.pkl")
    assert is_mcu_file(path)
    network = read_mcu(path)
    with zipfile.ZipFile(path) as archive:
        raw = pickle.loads(archive.read("archive/data.pkl"), encoding="latin1")
    assert network.size == 128
    assert (network.first.weight == raw["first_conv"]["params"]["weight"]).all()
    for block, theirs in zip(network.blocks, raw["blocks"], strict=True):
        assert (block.residual is None) == (theirs["residual"] is None)
        for own_name, own in zip(block.names, block.layers, strict=True):
            params = theirs[own_name]["params"]
            assert (own.weight == params["weight"]).all() and (own.bias == params["bias"]).all()
            assert (own.scales == params["w_scales"]).all()
            assert (own.x.scale, own.y.zero) == (params["x_scale"], params["y_zero"])
    assert (network.classifier.bias == raw["classifier"]["params"]["bias"]).all()


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_network_that_numpy_pickles_today_is_read_and_runs(tmp_path: Path, protocol: int) -> None:
    path = write(tmp_path / "small.pkl", small(), protocol)
    graph = load_mcu(path)
    assert [type(op).__name__ for op in graph.ops] == [
        "Conv2d", "DepthwiseConv2d", "Conv2d", "Conv2d", "DepthwiseConv2d", "Conv2d", "Add", "AveragePool",
        "Conv2d", "Reshape",
    ]  # fmt: skip
    answer = Machine(graph).run({"picture": np.zeros((2, 8, 8, 3), np.int8)})["logits"]
    assert answer.shape == (2, 5) and answer.dtype == np.int8


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False) | st.text()
)


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    try:
        found = plain_values(pickle.dumps(value, 2))
    except Refused as refused:
        # Python writes an empty tuple and one object in two places in its own way
        assert "two places" in str(refused)
        return
    assert found == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((1, 3, 1)),
        np.float32([1.5]),
        np.int8([[-128]]),
    ],
)
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    for protocol in (2, 3):
        found = plain_values(pickle.dumps({"a": array, "b": (1, "x")}, protocol))
        assert (found["a"] == array).all() and found["a"].dtype == array.dtype and found["b"] == (1, "x")


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    network = small()
    at: Any = network
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return network


CHANGES = {
    "no list of 1 to 200 blocks": (("blocks",), []),
    "x_scale of params of first_conv is nan": (("first_conv", "params", "x_scale"), float("nan")),
    "y_zero of params of first_conv is 999": (("first_conv", "params", "y_zero"), 999),
    "w_scales of first_conv are not all above 0": (
        ("first_conv", "params", "w_scales"),
        np.zeros(4, np.float32),
    ),
    "bias of params of first_conv is no array of int32": (
        ("first_conv", "params", "bias"),
        np.zeros(4, np.float32),
    ),
    "do not fit together": (("first_conv", "params", "bias"), np.zeros(5, np.int32)),
    "stride of first_conv is 0": (("first_conv", "stride"), 0),
    "squeeze and excite": (("blocks", 1, "se"), {"a": 1}),
    "a residual adds tensors of two shapes": (("blocks", 1, "depthwise", "stride"), 2),
    "adds another input than its own": (("blocks", 1, "residual", "params", "x_scale"), 0.07),
    "takes 4 channels and gets 3": (("first_conv", "params", "weight"), np.zeros((4, 4, 3, 3), np.int8)),
    "reads other codes": (("blocks", 0, "pointwise2", "params", "x_scale"), 0.07),
    "the classifier does not fit": (("classifier", "params", "weight"), np.zeros((5, 7, 1, 1), np.int8)),
    "has no first_conv": (("first_conv",), 3),
}


@pytest.mark.parametrize("finding", CHANGES)
def test_a_network_whose_parts_do_not_fit_is_refused(finding: str, tmp_path: Path) -> None:
    path, value = CHANGES[finding]
    with pytest.raises(Refused, match=finding):
        network_of(changed(path, value))
    with pytest.raises(DamagedFileError, match="is no int8 network") as caught:
        read_mcu(write(tmp_path / "a.pkl", changed(path, value)))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
