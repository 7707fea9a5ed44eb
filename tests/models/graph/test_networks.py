"""Real networks: known answers of the checkpoints, LiteRT's results to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.models.graph.nets import data, other_net, residual_net
from tests.models.graph.record_litert import GOAL, INPUTS, MODELS, checksum, codes

from haversack.core.errors import UserError
from haversack.models.graph import Graph, Machine, load_mcu
from haversack.models.graph._execute import KERNELS
from haversack.models.graph._ir import check
from haversack.models.graph.litert import load_litert
from haversack.models.graph.plan import products
from haversack.models.graph.training import in_floats, split, with_head

# network -> convolutions, inputs of the classifier, weights of convolutions, their products, best logit
FACTS = {
    "mcunet-5fps": (42, 160, 463_216, 22_453_504, 120),
    "mbv2-w0.35": (51, 112, 238_688, 16_646_912, 108),
    "proxyless-w0.3": (60, 96, 320_816, 18_619_904, 118),
}


def picture(name: str) -> np.ndarray:
    """A square from the middle as codes, 128 x 128."""
    skimage_data = pytest.importorskip("skimage.data")
    from skimage.transform import resize

    whole = getattr(skimage_data, name)()
    side = min(whole.shape[:2])
    top, left = ((each - side) // 2 for each in whole.shape[:2])
    small = resize(whole[top : top + side, left : left + side], (128, 128), anti_aliasing=True)
    return np.rint(small * 255 - 127.5).astype(np.int8)[None]


@pytest.mark.parametrize("name", FACTS)
def test_the_checkpoints_are_what_their_facts_say(name: str) -> None:
    graph = load_mcu(data("models", "mcu", f"{name}.pkl"))
    convs, features, weights, macs, _ = FACTS[name]
    last = graph.linears()[-1]
    assert len(graph.convolutions()) == convs + 1
    assert graph.tensors[last.x].size == features
    assert sum(graph.tensors[op.weight].size for op in graph.convolutions()[:-1]) == weights
    assert products(graph)["forward"] - graph.tensors[last.weight].size == macs


@pytest.mark.parametrize("rounding", ["float", "fixed"])
@pytest.mark.parametrize("name", FACTS)
def test_the_checkpoints_name_a_cat_and_an_espresso(name: str, rounding: str) -> None:
    graph = load_mcu(data("models", "mcu", f"{name}.pkl"))
    machine = Machine(graph, rounding)  # type: ignore[arg-type]
    logits = machine.run({"picture": np.concatenate([picture("chelsea"), picture("coffee")])})["logits"]
    assert logits.argmax(axis=1).tolist() == [285, 967]
    assert abs(int(logits[0].max()) - FACTS[name][4]) <= 4


def test_headroom_moves_no_code() -> None:
    """Biases of dead channels as they are in the file, in sums of 64 bits."""
    from haversack.formats.mcu_pickle import read_mcu

    place = data("models", "mcu", "mcunet-5fps.pkl")
    network, graph = read_mcu(place), load_mcu(place)
    seen = picture("chelsea")
    values = {"picture": seen}
    machine = Machine(graph)
    KERNELS[type(graph.ops[0])](machine, graph.ops[0], values)
    layer = network.first
    assert (layer.bias != graph.constants["first_conv.bias"]).any()
    from haversack.models.graph._forward import patches

    rows = patches(seen.astype(np.int64), (3, 3), (2, 2), ((1, 1), (1, 1)))
    weight = layer.weight.transpose(0, 2, 3, 1).reshape(16, -1).astype(np.int64)
    total = rows @ weight.T + layer.bias.astype(np.int64)
    scales = (layer.x.scale * layer.scales.astype(np.float64) / layer.y.scale).astype(np.float32)
    wanted = np.clip(np.rint(total.astype(np.float32) * scales) + layer.y.zero, -128, 127)
    assert (values["first_conv.y"] == wanted).all()


@pytest.mark.parametrize("name", MODELS)
def test_every_operation_gives_litert_s_codes(name: str) -> None:
    """What its reference kernels gave. The sum of the speech network is left out there: its reference kernel
    gives -1 for everything."""
    graph = load_litert(data("models", MODELS[name], f"{name}.tflite"))
    recorded = json.loads(GOAL.read_text(encoding="utf-8"))[name]
    machine = Machine(graph)
    assert machine.rounding == "fixed"
    for seed in range(INPUTS):
        shape = (1, *graph.tensors["input"].shape)
        values = {"input": codes(shape, seed)}
        for op, wanted in zip(graph.ops, recorded[seed], strict=True):
            KERNELS[type(op)](machine, op, values)
            if type(op).__name__ == "Mean":
                real = (values[op.reads[0]].astype(float) + 128).sum(axis=(1, 2))
                x, y = (graph.tensors[each].quantization for each in (op.reads[0], op.writes[0]))
                assert x is not None and y is not None
                scaled = np.clip(real * x.scale / y.scale - 128, -128, 127)
                assert np.abs(scaled - values[op.writes[0]]).max() <= 0.5 + 1e-6
                break
            assert checksum(values[op.writes[0]]) == wanted, op


def test_codes_and_the_floats_they_stand_for_agree_on_real_digits() -> None:
    """ResNet8 in integers names what the network in floats names, on nearly all pictures."""
    exact = load_litert(data("models", "mlperf-tiny", "pretrainedResnet.tflite"))
    narrow = load_litert(data("models", "mlperf-tiny", "pretrainedResnet_quant.tflite"))
    skimage_data = pytest.importorskip("skimage.data")
    whole = skimage_data.astronaut()
    seen = np.stack(
        [whole[i : i + 64 : 2, j : j + 64 : 2] for i in range(0, 448, 64) for j in range(0, 448, 64)]
    )
    answers = Machine(exact).run({"input": seen.astype(np.float32)})[exact.outputs[0]]
    codes_in = (seen.astype(np.int16) - 128).astype(np.int8)
    found = Machine(narrow).run({"input": codes_in})[narrow.outputs[0]]
    sure = np.sort(answers, axis=1)
    clear = sure[:, -1] - sure[:, -2] > 0.2
    assert clear.sum() > 20
    assert (answers.argmax(axis=1) == found.argmax(axis=1))[clear].mean() > 0.9


@pytest.mark.parametrize("make", [residual_net, other_net])
def test_rows_do_not_know_each_other(make) -> None:
    graph = make()
    inputs = np.random.default_rng(1).integers(-128, 128, (5, 8, 8, 3)).astype(np.int8)
    for rounding in ("float", "fixed"):
        machine = Machine(graph, rounding)
        together = machine.run({"x": inputs})[graph.outputs[0]]
        alone = [machine.run({"x": inputs[i : i + 1]})[graph.outputs[0]][0] for i in range(5)]
        assert (together == np.stack(alone)).all()


@pytest.mark.parametrize("make", [residual_net, other_net])
def test_each_operation_differs_by_one_code_at_most_between_both_ways_to_scale(make) -> None:
    graph = make(3)
    exact, fixed = Machine(graph, "float"), Machine(graph, "fixed")
    values = {"x": np.random.default_rng(2).integers(-128, 128, (4, 8, 8, 3)).astype(np.int8)}
    for op in graph.ops:
        other = dict(values)
        KERNELS[type(op)](exact, op, values)
        KERNELS[type(op)](fixed, op, other)
        y = op.writes[0]
        assert np.abs(values[y].astype(int) - other[y].astype(int)).max() <= 1, op


@pytest.mark.parametrize("name", FACTS)
def test_the_floats_that_a_checkpoint_stands_for_name_the_same(name: str) -> None:
    graph = in_floats(load_mcu(data("models", "mcu", f"{name}.pkl")))
    assert {tensor.dtype for tensor in graph.tensors.values()} == {"f32"}
    for sample, wanted in (("chelsea", 285), ("coffee", 967)):
        real = picture(sample).astype(np.float32) * np.float32(2 / 255)
        assert Machine(graph).run({"picture": real})["logits"].argmax() == wanted


def test_a_cut_network_computes_the_same_in_two_parts() -> None:
    graph = with_head(residual_net(), 3, 0)
    first, rest = split(graph, "y4")
    inputs = np.random.default_rng(5).integers(-128, 128, (2, 8, 8, 3)).astype(np.int8)
    whole = Machine(graph).run({"x": inputs})["logits"]
    between = Machine(first).run({"x": inputs})["y4"]
    assert (Machine(rest).run({"y4": between})["logits"] == whole).all()
    with pytest.raises(ValueError, match="before it is written"):
        split(graph, "y2")


def test_a_kept_head_answers_as_the_classifier_did() -> None:
    graph = load_mcu(data("models", "mcu", "proxyless-w0.3.pkl"))
    seen = picture("coffee")
    whole = Machine(graph).run({"picture": seen})["logits"][0]
    kept = Machine(with_head(graph, None, 0)).run({"picture": seen})["logits"][0]
    codes_ = graph.tensors["logits"].quantization
    assert codes_ is not None
    inside = (whole > -128) & (whole < 127)
    assert np.abs((whole - codes_.zero) * codes_.scale - kept)[inside].max() <= 0.51 * codes_.scale


def test_a_graph_that_does_not_hold_is_no_graph() -> None:
    graph = residual_net()
    with pytest.raises(ValueError, match="before it is written"):
        Graph("a", graph.tensors, graph.ops[::-1], ("x",), graph.outputs, graph.constants)
    with pytest.raises(ValueError, match="written twice"):
        Graph("a", graph.tensors, graph.ops + graph.ops[:1], ("x",), graph.outputs, graph.constants)
    with pytest.raises(ValueError, match="nothing writes"):
        Graph("a", graph.tensors, graph.ops[:-1], ("x",), graph.outputs, graph.constants)
    check(graph)


def test_a_float_network_is_read_and_its_hybrid_weights_are_floats() -> None:
    graph = load_litert(data("models", "mlperf-tiny", "kws_ref_model_float32.tflite"))
    assert {graph.tensors[name].dtype for name in graph.constants} == {"f32"}
    answers = Machine(graph).run({"input": np.zeros((1, 49, 10, 1), np.float32)})[graph.outputs[0]]
    assert answers.sum() == pytest.approx(1, abs=1e-5)


def test_an_operation_that_is_not_supported_is_named(tmp_path) -> None:
    raw = bytearray(data("models", "mlperf-tiny", "ad01_int8.tflite").read_bytes())
    from haversack.formats._flatbuffer import Table

    code = Table.root(bytes(raw), b"TFL3").tables(1, 9)[0]
    place = code._place(0)
    assert place is not None
    raw[place] = 77
    path = tmp_path / "odd.tflite"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"operation 77 of LiteRT, and these are supported: add"):
        load_litert(path)
