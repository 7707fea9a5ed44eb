"""MobileQuant's packs: written, read back, run with static integers, refused where something is missing."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from haversack.cli import main  # noqa: E402
from haversack.core.errors import DamagedFileError, UserError  # noqa: E402
from haversack.core.pack import Pack, PackWriter  # noqa: E402
from haversack.formats.safetensors import HubFolder, write_safetensors  # noqa: E402
from haversack.models._bundled import bundled_names, model_folder  # noqa: E402
from haversack.models.language import read_architecture  # noqa: E402
from haversack.run import Engine  # noqa: E402
from haversack.run.forms.static_input import parts  # noqa: E402
from haversack.shrink._language import LanguageWalk  # noqa: E402
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes  # noqa: E402
from haversack.shrink.precision._mobilequant_integer import run_integer  # noqa: E402
from haversack.shrink.precision._mobilequant_pack import read_model, stored  # noqa: E402
from haversack.shrink.precision.mobilequant import MobileQuant  # noqa: E402
from haversack.shrink.precision.mobilequant_torch import Recipe, quantize, simulate  # noqa: E402
from haversack.shrink.precision.round_to_nearest import RoundToNearest  # noqa: E402

CONFIG = {
    "model_type": "stablelm",
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-5,
    "use_qkv_bias": True,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A random StableLM as a hub folder, and texts."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    folder.mkdir()
    rng = np.random.default_rng(5)
    tensors = []
    for name, shape in read_architecture(CONFIG).tensors().items():
        values = rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.1)
        values += 1.0 if "norm.weight" in name else 0.0
        tensors.append((name, "f32", shape, values.astype(np.float32).tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder, rng.integers(0, 60, (6, 40)).astype(np.int32)


def packed(folder, texts, goal, method):
    source = HubFolder.open(folder)
    with PackWriter(goal) as writer:
        walk = LanguageWalk(read_architecture(source.config))
        compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)
        plan = {"activations": "int8-static" if isinstance(method, MobileQuant) else "f32"}
        writer.finish({"architecture": dict(source.config), "plan": plan})
    return goal


@pytest.fixture(scope="module", params=[8, 4])
def pack(request, hub, tmp_path_factory):
    """A pack of 8-bit or of 4-bit weights."""
    goal = tmp_path_factory.mktemp("packs") / f"{request.param}.pack"
    return packed(*hub, goal, MobileQuant(bits=request.param, mode="smoothed"))


def lost(found, exact):
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def logits(pack, texts, **options):
    with Engine.open(pack, **options) as engine:
        return np.stack([engine.step(text, cache=engine.cache(64), want="all")[0] for text in texts])


def test_a_pack_holds_what_was_learned(hub, pack):
    _, texts = hub
    opened = Pack.open(pack)
    model = read_model(opened)
    architecture = model.architecture
    assert set(opened.forms) == {one.weight for block in architecture.blocks for one in block.matrices()}
    assert {"act_ranges.json", "qconfig.json"} <= set(opened.record.files)
    source = HubFolder.open(hub[0])
    from haversack.shrink._source import read_tensor

    tensors = {name: read_tensor(source, name) for name in architecture.tensors()}
    again = quantize(architecture, tensors, texts, Recipe(bits=model.bits, mode="smoothed"))
    for name, matrix in again.matrices.items():
        assert (model.matrices[name].codes == matrix.codes).all()
        assert model.matrices[name].dense() == pytest.approx(matrix.dense(), rel=1e-6)
    for where, grid in again.grids.items():
        assert (int(model.grids[where].zero), int(model.grids[where].high)) == (
            int(grid.zero),
            int(grid.high),
        )
        assert float(model.grids[where].scale) == pytest.approx(float(grid.scale), rel=1e-9)


def test_sizes_are_planned_to_the_byte(hub, pack):
    walk = LanguageWalk(read_architecture(CONFIG))
    bits = 8 if pack.name == "8.pack" else 4
    kinds = stored_kinds(walk, MobileQuant(bits=bits), Policy())
    assert stored_nbytes(walk, kinds) == sum(entry.nbytes for entry in Pack.open(pack).tensors.values())


def test_the_engine_is_near_the_simulation_and_the_integers(hub, pack):
    _, texts = hub
    model = read_model(Pack.open(pack))
    simulated = simulate(model, texts)
    whole = np.stack([np.multiply(*run_integer(model, text)) for text in texts])
    fast = logits(pack, texts)
    floats = logits(pack, texts, activations="f32")
    assert lost(whole, simulated) < 0.05
    assert 0 < lost(fast, floats) < 0.2  # static integers are used, and are near
    assert lost(fast, simulated) < 0.2
    assert (fast.argmax(-1) == simulated.argmax(-1)).mean() > 0.85


def test_a_step_of_many_tokens_has_the_bits_of_single_steps(hub, pack):
    _, texts = hub
    with Engine.open(pack) as engine:
        together = engine.step(texts[0][:9], cache=engine.cache(16), want="all")[0]
        cache = engine.cache(16)
        alone = np.concatenate([engine.step([token], cache=cache)[0] for token in texts[0][:9]])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("residency", ["copied", "streamed:keep=0"])
def test_any_residency_gives_the_same_bits(hub, pack, residency):
    _, texts = hub
    assert np.array_equal(logits(pack, texts[:2], residency=residency), logits(pack, texts[:2]))


def test_static_integers_need_ranges(hub, tmp_path):
    folder, _ = hub
    goal = packed(folder, None, tmp_path / "plain.pack", RoundToNearest(bits=8))
    for source in (goal, folder):
        with pytest.raises(UserError, match=r"q_proj\.weight has none.*mobilequant"):
            Engine.open(source, activations="int8-static")
    with pytest.raises(UserError, match="no ranges of activations"):
        read_model(Pack.open(goal))


def test_no_text_is_refused(hub, tmp_path):
    folder, texts = hub
    for none in (None, texts[:0]):
        with pytest.raises(UserError, match="needs calibration text"):
            packed(folder, none, tmp_path / "none.pack", MobileQuant())
    assert not (tmp_path / "none.pack").exists()


def test_asymmetric_weights_make_no_pack(hub):
    folder, texts = hub
    source = HubFolder.open(folder)
    from haversack.shrink._source import read_tensor

    architecture = read_architecture(CONFIG)
    tensors = {name: read_tensor(source, name) for name in architecture.tensors()}
    model = quantize(architecture, tensors, texts, Recipe(mode="nearest", symmetric=False))
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(UserError, match="asymmetric"):
        stored(model.matrices[name], 8, name)


@pytest.mark.parametrize(
    "changed",
    [{"scale": 0.0}, {"scale": float("inf")}, {"scale": "1"}, {"zero": 128}, {"zero": 1.5}, {"zero": None}],
)
def test_a_form_that_cannot_be_is_refused(changed):
    entry = {"form": "static-input", "shape": [4, 8], "scale": 0.1, "zero": 0, **changed}
    with pytest.raises(ValueError):
        parts(entry)


@pytest.mark.parametrize(
    "damage",
    [b"{", b"[]", b"{}", b'{"model.layers.0.input_layernorm": {"input": [NaN, 1], "output": [0, 1]}}'],
)
def test_ranges_that_do_not_fit_are_named(hub, tmp_path, damage):
    folder, texts = hub
    goal = packed(folder, texts, tmp_path / "one.pack", MobileQuant(mode="nearest"))
    opened = Pack.open(goal)
    broken = tmp_path / "broken.pack"
    with PackWriter(broken) as writer:
        for name, entry in opened.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [opened.bytes(name)], entry.group, entry.layout)
        for name, form in opened.forms.items():
            writer.add_form(name, form)
        writer.add_file("act_ranges.json", damage)
        writer.add_file("qconfig.json", opened.read_file("qconfig.json"))
        writer.finish({"architecture": dict(opened.record.architecture)})
    with pytest.raises(DamagedFileError, match=r"act_ranges\.json"):
        read_model(Pack.open(broken))


@pytest.mark.skipif("code" not in bundled_names(), reason="the bundled model `code` is not installed")
def test_the_command_packs_and_runs(capsys, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = json.loads((model_folder("code") / "config.json").read_text())
    config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128}
    rng = np.random.default_rng(0)
    tensors = []
    for name, shape in read_architecture(config).tensors().items():
        values = (
            1 + 0.1 * rng.normal(size=shape) if len(shape) == 1 else rng.normal(size=shape) / shape[-1] ** 0.5
        )
        tensors.append((name, "f16", shape, values.astype(np.float16).tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(model_folder("code") / "tokenizer.json", folder)
    goal = tmp_path / "tiny.pack"
    choice = "mobilequant:bits=8,epochs=1"
    argv = ["pack", str(folder), "--device", "raspberry-pi-zero-2w", "-o", str(goal), "--precision", choice]
    argv += ["--calibration-tokens", "2048", "--residency", "mapped", "--cache-type", "f32", "--json"]
    assert main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plan"]["activations"] == "int8-static"
    assert {one["plan"]["activations"] for one in record["candidates"]} == {"int8-static"}
    assert {"act_ranges.json", "qconfig.json"} <= set(Pack.open(goal).record.files)
    assert main(["run", str(goal), "--prompt", "def ", "--max-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["activations"] == "int8-static"
    assert main(["check", str(goal)]) == 0
    capsys.readouterr()
    assert main(["run", str(folder), "--prompt", "x", "--activations", "int8-static", "--json"]) == 2
    assert "mobilequant" in json.loads(capsys.readouterr().out)["error"]


def test_the_graph_and_its_encodings_name_the_same_tensors(hub, pack, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from haversack.run._source import open_model
    from haversack.run.export import export

    goal = tmp_path / "graph"
    export(open_model(pack), "onnx", goal, weights="f32")
    graph = onnx.load(goal / "model.onnx", load_external_data=False).graph
    tensors = {name for node in graph.node for name in (*node.input, *node.output)}
    found = json.loads((goal / "encodings.json").read_text())
    ranges = json.loads(Pack.open(pack).read_file("act_ranges.json"))
    assert len(found["activation_encodings"]) == sum(len(sides) for sides in ranges.values())
    assert set(found["activation_encodings"]) | set(found["param_encodings"]) <= tensors
    (one,) = found["activation_encodings"][next(iter(found["activation_encodings"]))]
    assert set(one) == {"min", "max", "scale", "offset", "bitwidth", "is_symmetric"}
    assert one["min"] == pytest.approx(one["offset"] * one["scale"], rel=1e-6, abs=1e-9)
    down = found["param_encodings"]["model.layers.0.mlp.down_proj.weight.codes"]
    assert len(down) == 64 and down[0]["is_symmetric"] and down[0]["bitwidth"] == int(pack.stem)
    session = runtime.InferenceSession(goal / "model.onnx")
    text = hub[1][0][None].astype(np.int64)
    feeds = {
        "input_ids": text,
        "position_ids": np.arange(40)[None],
        "attention_mask": np.ones((1, 40), np.int64),
    }
    for index in range(2):
        for part in ("key", "value"):
            feeds[f"past_key_values.{index}.{part}"] = np.zeros((1, 2, 0, 16), np.float32)
    got = session.run(["logits"], feeds)[0]
    assert lost(got, logits(pack, hub[1][:1], activations="f32")) < 1e-4
