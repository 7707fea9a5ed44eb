"""Plans and their predictions: all that the methods allow, nothing that they deny, sizes exact to the
byte.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from haversack.core.device import device
from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder
from haversack.plan._enumerate import Space, create_precision, precision_choices, predicted
from haversack.plan._predict import MIB, Sizes, bits_a_weight, times
from haversack.run._window import BACK, ROOM
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def space(**changes):
    config = CONFIG | changes.pop("config", {})
    options = dict(
        architecture=read_architecture(config),
        device=device("raspberry-pi-zero-2w"),
        files_nbytes=1000,
        context=128,
    )
    return Space(**(options | changes))


def test_every_method_is_tried_in_every_width_and_group():
    choices = precision_choices(None)
    assert len(choices) == len(set(choices))
    assert {"keep:kind=f32", "keep:kind=f16", "gptq:bits=8", "round-to-nearest:bits=8"} <= set(choices)
    for name, group in itertools.product(("gptq", "round-to-nearest"), (32, 64, 128)):
        assert f"{name}:bits=4,group={group}" in choices


def test_a_fixed_precision_is_kept_and_an_unknown_one_refused():
    full = "gptq:bits=4,group=32,order=activation"
    assert precision_choices("gptq:order=activation,group=32") == [full]
    assert create_precision(full) == create_precision("gptq:group=32,order=activation")
    assert all(choice.startswith("gptq") for choice in precision_choices("gptq"))
    with pytest.raises(UserError) as caught:
        precision_choices("gtpq")
    assert caught.value.nearest == "gptq"
    with pytest.raises(UserError, match="bits=5 is not supported"):
        precision_choices("gptq:bits=5")


def test_integer_activations_are_planned_for_integer_weights_only():
    candidates, noises = predicted(space())
    for one in candidates:
        if one.plan.activations != "f32":
            assert "bits=" in one.plan.precision
    assert set(noises) == {one.plan for one in candidates}
    assert {one.plan.residency for one in candidates} >= {"mapped", "copied", "streamed"}
    with pytest.raises(UserError, match="no plan has activations int8-dynamic"):
        predicted(space(precision="keep:kind=f32", activations="int8-dynamic"))


def test_predictions_order_plans_as_physics_does():
    candidates, _ = predicted(space())
    known = {one.plan: one for one in candidates}

    def of(precision, **changes):
        plan = next(one.plan for one in candidates if one.plan.precision == precision)
        base = dict(activations="f32", residency="mapped", cache_type="f32")
        return known[dataclasses.replace(plan, **(base | changes))]

    f32, f16, int8, int4 = (
        of(p) for p in ("keep:kind=f32", "keep:kind=f16", "gptq:bits=8", "gptq:bits=4,group=64")
    )
    assert f32.storage_mib > f16.storage_mib > int8.storage_mib > int4.storage_mib
    assert f32.ram_mib > f16.ram_mib > int8.ram_mib > int4.ram_mib
    assert f32.loss == 0 and f16.loss < int8.loss < int4.loss < of("round-to-nearest:bits=4,group=64").loss
    assert f32.bits == pytest.approx(32, rel=0.02) and 4.5 < int4.bits < 6.5
    assert (
        of("gptq:bits=8", cache_type="int8").ram_mib
        < of("gptq:bits=8", cache_type="f16").ram_mib
        < int8.ram_mib
    )
    assert of("gptq:bits=8", residency="streamed").device < int8.device


def test_layers_with_a_window_are_planned_by_what_the_attention_keeps():
    config = {"model_type": "mistral", "sliding_window": 32, "max_position_embeddings": 4096}
    fixed = {"precision": "gptq:bits=4,group=32", "residency": "mapped", "cache_type": "f32"}

    def ram_mib(**changes):
        options = {**fixed, "config": config, "context": 4096, "activations": "f32", **changes}
        return predicted(space(**options))[0][0].ram_mib

    entry = 2 * 2 * 2 * 16 * 4 / 2**20  # of both layers
    left_out = 4096 - (31 + BACK + ROOM)
    assert ram_mib(attention="dhsa:budget=1024") - ram_mib() == pytest.approx(left_out * entry)
    assert ram_mib(attention="sliding:window=16") == pytest.approx(ram_mib() - 16 * entry)
    assert ram_mib(attention="sliding:window=64") == ram_mib()


def test_time_is_bound_by_what_the_device_is_short_of():
    big = read_architecture(
        CONFIG
        | {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        }
    )
    board = device("raspberry-pi-5")
    kinds = stored_kinds(LanguageWalk(big), create_precision("gptq:bits=4,group=64"), Policy())
    found = Sizes.of(big, kinds)
    how = dict(residency="mapped", cache_type="f16")
    speed = times(board, big, found, activations="int8-dynamic", **how).tokens_per_s
    most = board.read_gb_s * 1e9 / (found.weights - 0)
    assert 0.5 * most < speed <= 1.05 * most  # a 1.1 B model reads all weights for each token
    copied = times(board, big, found, activations="int8-dynamic", residency="copied", cache_type="f16")
    assert 1.1 * speed < copied.tokens_per_s < 1.18 * speed  # 2 MiB pages
    streamed = times(board, big, found, activations="int8-dynamic", residency="streamed", cache_type="f16")
    assert streamed.tokens_per_s < board.storage_mb_s * 1e6 / sum(found.blocks)
    slow = times(board, big, found, activations="f32", **how)
    fast = times(board, big, found, activations="int8-dynamic", **how)
    assert slow.latency_ms > fast.latency_ms and slow.energy_mj > fast.energy_mj


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "precision", ["keep:kind=f16", "round-to-nearest:bits=8", "round-to-nearest:bits=4,group=32"]
)
def test_predicted_bytes_are_the_packed_bytes(tmp_path, tied, precision):
    """A small checkpoint is written and packed; its tensors take exactly what was predicted."""
    from haversack.formats.safetensors import write_safetensors

    config = CONFIG | {"tie_word_embeddings": tied}
    architecture = read_architecture(config)
    rng = np.random.default_rng(0)
    write_safetensors(
        tmp_path / "model.safetensors",
        [
            (name, "f16", shape, rng.normal(size=shape).astype(np.float16).tobytes())
            for name, shape in architecture.tensors().items()
        ],
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    walk, method = LanguageWalk(architecture), create_precision(precision)
    with PackWriter(tmp_path / "a.pack") as writer:
        compress(HubFolder.open(tmp_path), walk, method, writer, texts=None, policy=Policy(), folder=tmp_path)
        writer.finish({})
    packed = sum(entry.nbytes for entry in Pack.open(tmp_path / "a.pack").tensors.values())
    found = Sizes.of(architecture, stored_kinds(walk, method, Policy()))
    assert found.weights == packed
    candidates, _ = predicted(space(config={"tie_word_embeddings": tied}, precision=precision))
    assert candidates[0].storage_mib == pytest.approx((packed + 1000) / MIB)
    assert bits_a_weight(architecture, found) == pytest.approx(
        8 * packed / sum(int(np.prod(shape)) for shape in architecture.tensors().values())
    )


def test_models_are_found_by_name_or_folder_and_others_say_what_works(tmp_path):
    if not bundled_names():
        pytest.skip("no bundled model is installed")
    assert "code" in bundled_names() and (model_folder("code") / "config.json").is_file()
    assert model_folder(str(tmp_path)) == tmp_path
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    for name, said in [
        ("codee", "Did you mean code"),
        (str(tmp_path / "x.gguf"), "is a file"),
        (str(tmp_path / "y.gguf"), "there is no file"),
        ("./missing", "there is no model"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            model_folder(name)
        assert "checkpoint folder" in str(caught.value)
